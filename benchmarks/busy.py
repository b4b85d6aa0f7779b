"""The default training's pass on a CPU that is idle, or busy with other processes, by how long OpenMP's threads spin.

python -m benchmarks.busy

Every thread of an operation waits for the last one. A thread that spins while it waits keeps a core from the one that it waits
for, if another process is running; a thread that sleeps at once is slow to wake. GOMP_SPINCOUNT sets how long it spins before
it sleeps; the commands set 3000 (stages/console.py). Each figure is the mean of several passes, forward and backward, of the
embedded base's UNet over 16 latents. Writes busy.json beside this file. GNU's OpenMP only, which PyTorch's Linux builds use.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measured import ROOT

SETTINGS = {
    "default": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often every setting is measured, in turn.")] = 2,
    seconds: Annotated[float, typer.Option(min=1, help="How long each measurement takes passes.")] = 10.0,
) -> None:
    """Measures every setting beside 0, 1 and 2 busy processes."""
    found: dict[str, dict[str, list[float]]] = {name: {str(busy): [] for busy in range(3)} for name in SETTINGS}
    for _ in range(rounds):
        for busy in range(3):
            for name, setting in SETTINGS.items():
                with busy_processes(busy):
                    found[name][str(busy)].append(pass_seconds(setting, seconds))
    figures = {
        name: {f"beside {busy} busy": round(statistics.mean(values), 3) for busy, values in by_busy.items()}
        for name, by_busy in found.items()
    }
    written = {"processor": processor(), "threads": os.cpu_count(), "seconds_per_pass": figures}
    Path(__file__).with_suffix(".json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(written, indent=2))


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keeps some processes computing while the block runs."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def pass_seconds(setting: dict[str, str], seconds: float) -> float:
    """Returns the mean seconds of a pass, in a process of its own with these environment variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-c", f"from benchmarks.busy import passes; passes({seconds})"]
    done = subprocess.run(words, env=environment | setting | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def passes(seconds: float) -> None:
    """Takes passes for some seconds, at least three, and prints the mean of their times."""
    import torch

    from t2i.model.families.stable_diffusion import Family

    family = Family(ROOT / "base/openmoji")
    unet, text = family.load_unet(random=False).train(), family.load_text("cpu")
    conditioning = family.encode_prompts(text, ["red heart"] * 16)
    latents, timesteps = torch.randn(16, 4, 16, 16), torch.arange(16) * 60
    times: list[float] = []
    while len(times) < 4 or sum(times) < seconds:
        started = time.perf_counter()
        family.predict(unet, latents, timesteps, conditioning).square().mean().backward()
        times.append(time.perf_counter() - started)
    print(statistics.mean(times[1:]))  # the mean, not the median: a busy machine stalls some passes for seconds


def processor() -> str:
    """Returns the processor's name, and whether it has instructions for bf16."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = " ".join(line for line in lines if line.startswith("flags"))
    return f"{names[0] if names else platform.processor()}, {'with' if 'bf16' in flags else 'without'} bf16 instructions"


if __name__ == "__main__":
    typer.run(main)
