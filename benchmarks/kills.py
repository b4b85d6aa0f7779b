"""Kills training at random moments, resumes it, and compares it with an uninterrupted run: the weights are equal, bit for bit.

python -m benchmarks.kills --kills 30

Run it in a checkout in which `dvc repro` has encoded the dataset. It uses the parameters of params.yaml, with a checkpoint
every two seconds. A kill is SIGKILL or, one time in three, SIGTERM. It can come at any moment: while Python starts, between
steps, or while a checkpoint or the exported model is written. If the results differ, it names a file and exits with code 1.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from benchmarks.measured import ROOT


def main(
    kills: Annotated[int, typer.Option(help="Number of kills.")] = 30,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; default: those of params.yaml.")] = None,
    most_seconds: Annotated[float, typer.Option(help="Longest time from a start to a kill, in seconds.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Decides the times and signals of the kills.")] = 0,
    processes: Annotated[int, typer.Option(help="Processes that train together.")] = 1,
    micro_batch_size: Annotated[int | None, typer.Option(help="Images per micro-batch; default: those of a step.")] = None,
) -> None:
    """Trains once without and once with kills, and compares models and histories."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _params(folder / "params.yaml", steps, {"processes": processes, "micro_batch_size": micro_batch_size})
        _finish(*_start(folder, "unbroken"))
        before = _result(folder, "unbroken")
        for number in range(kills):
            process, log = _start(folder, "killed")
            pause = chance.uniform(0, most_seconds)
            try:
                process.wait(pause)
            except subprocess.TimeoutExpired:
                pass
            else:
                _finish(process, log)
                sys.exit(f"the run ended before kill {number + 1}: give more --steps or fewer --kills")
            process.send_signal(signal.SIGTERM if chance.random() < 1 / 3 else signal.SIGKILL)
            process.wait()
            print(f"kill {number + 1} of {kills}, {pause:.1f} s after its start: exit code {process.returncode}", flush=True)
        _finish(*_start(folder, "killed"))
        after = _result(folder, "killed")
    differing = sorted(name for name in before | after if before.get(name) != after.get(name))
    if differing:
        sys.exit(f"{len(differing)} of {len(before)} files differ, for example {differing[0]}")
    print(f"{kills} kills, {len(before)} files, all equal")


def _params(path: Path, steps: int | None, runtime: dict[str, Any]) -> None:
    params: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["train"]["steps"] = steps or params["train"]["steps"]
    params["runtime"] |= {"checkpoint_every_seconds": 2, **runtime}
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)


def _start(folder: Path, name: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Starts a run; returns it, and the log of this start alone: what an earlier start left may still write to its own."""
    outputs = {"out": "model", "validation": "validation", "report": "report"}
    arguments = [word for option, out in outputs.items() for word in (f"--{option}", str(folder / name / out))]
    work = {"T2I_WORK_DIR": str(folder / name / "work"), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    command = [sys.executable, "-m", "stages.train", "--params", str(folder / "params.yaml"), *arguments]
    descriptor, log = tempfile.mkstemp(".log", dir=folder)
    with open(descriptor, "wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | work, stdout=file, stderr=file), Path(log)


def _finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for the end of a run. If that is an error, exits with its messages and the end of its log."""
    if code := process.wait():
        said = log.read_text(errors="replace")
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        sys.exit("\n".join([f"a run ended by itself, with exit code {code}:", *errors, "the end of its log:", said[-2000:]]))


def _result(folder: Path, name: str) -> dict[str, bytes]:
    """Returns the bytes of each file that a run wrote, except its checkpoints."""
    found = [path for out in ("model", "report", "validation") for path in (folder / name / out).rglob("*") if path.is_file()]
    if not found:
        sys.exit(f"the run {name!r} wrote nothing")
    return {str(path.relative_to(folder / name)): path.read_bytes() for path in found}


if __name__ == "__main__":
    typer.run(main)
