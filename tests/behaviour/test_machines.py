"""Training on several machines: processes in folders of their own, which share nothing but loopback."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch._C._distributed_c10d import TCPStore
from torch.nn.modules.module import register_module_forward_hook

from tests import tiny
from tests.projects import ROOT, Project, files
from tests.victims import TRAINING, Ended, Victim, Watch, command, file_changes, t2i, victim

pytestmark = pytest.mark.slow

NEEDED = ("params.yaml", "data/base", "data/latents", "data/embeds")
"""What the machines after the first one have."""
PATIENCE = 4.0
LOOPBACK = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "T2I_PATIENCE_SECONDS": str(PATIENCE)}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Machines:
    """Two machines: the project's folder, and a folder with copies of what the second one needs."""

    def __init__(self, folder: Path) -> None:
        self.first, self.second = folder, folder / "second"
        for name in NEEDED:
            (self.second / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (self.first / name).is_dir() else shutil.copyfile
            copy(self.first / name, self.second / name)

    def start(self, watches: tuple[Watch, Watch] = (id, id), at: tuple[dict, dict] = ({}, {}), **more: str) -> list[Victim]:
        """Starts the training process of each machine."""
        port = str(free_port())
        return [Victim(self._process(rank, {"MASTER_PORT": port} | more), watches[rank], at[rank]) for rank in range(2)]

    def train(self, *arguments: Any, **more: str) -> list[Ended]:
        """Runs the training process of each machine to its end."""
        return [process.wait() for process in self.start(*arguments, **more)]

    def _process(self, rank: int, more: dict[str, str]) -> Callable[[], None]:
        def action() -> None:
            os.environ.update(LOOPBACK | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0"} | more)
            os.chdir((self.first, self.second)[rank])
            t2i("train")

        return action

    def wait_for_validation(self) -> None:
        """Waits until `slow_validation` has begun."""
        deadline = time.monotonic() + 60
        while not (self.first / "validates").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def change(self, section: str, **values: Any) -> None:
        """Changes parameters on the second machine."""
        yaml, path = YAML(typ="safe"), self.second / "params.yaml"
        params = yaml.load(path.read_text(encoding="utf-8"))
        params[section] |= values
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(params, file)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A project ready to train for 6 steps."""
    folder = tmp_path_factory.mktemp("encoded")
    with contextlib.chdir(folder):
        tiny.make_images(folder / "images", 24)
        project = Project(folder, tiny_base)
        project.params["runtime"] |= {"micro_batch_size": 1, "log_every_steps": 1, "checkpoint_every_seconds": 1e-9}
        project.write()
        project.fetch_and_encode()
    shutil.rmtree(folder / "data/work")
    return folder


@pytest.fixture
def machines(encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    shutil.copytree(encoded, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Machines(tmp_path)


@pytest.fixture(scope="module")
def alone(encoded: Path) -> list[float]:
    """The losses of a single process."""
    with contextlib.chdir(encoded):
        ended = victim(command("train"))
    assert ended.code == 0, ended.said
    found = losses(encoded)
    for name in ("model", "validation", "reports/train", "work"):
        shutil.rmtree(encoded / "data" / name)
    return found


def losses(folder: Path) -> list[float]:
    """Returns the losses in full, from the last checkpoint: history.csv has six digits."""
    *_, last = sorted((folder / "data/work").glob("train-*/step-????????"))
    return load_file(last / "history.safetensors")["rows"][:, 0].tolist()


def error(ended: Ended) -> str:
    """Returns the one line that says why a process ended with exit code 1."""
    assert ended.code == 1, ended.said
    assert "Traceback" not in ended.said
    (line,) = (line for line in ended.said.splitlines() if line.startswith("error: "))
    return line


def test_machines_by_torchrun_give_the_losses_of_one_process(machines, alone) -> None:
    before, port = files(machines.second), free_port()
    environment = os.environ | LOOPBACK | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    place = ["--master-addr=127.0.0.1", f"--master-port={port}", "-m", "stages.train"]
    processes = [
        subprocess.Popen(
            [*launcher, f"--node-rank={rank}", *place], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank, folder in enumerate((machines.first, machines.second))
    ]
    said = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert losses(machines.first) == pytest.approx(alone, rel=1e-6)
    assert files(machines.second) == before


def test_a_run_goes_on_with_more_and_with_fewer_machines(machines, alone) -> None:
    assert victim(command("train"), TRAINING, {4 * 1 + 2: signal.SIGTERM}).code == 128 + signal.SIGTERM
    both = machines.train((TRAINING, id), ({2 * 2 + 1: signal.SIGTERM}, {}))
    assert [ended.code for ended in both] == [128 + signal.SIGTERM] * 2
    assert "resuming after step 1 " in both[0].said
    assert "after step 4 of 6" in both[1].said
    last = victim(command("train"))
    assert last.code == 0, last.said
    assert "resuming after step 4 " in last.said
    assert losses(machines.first) == pytest.approx(alone, rel=1e-6)


def test_killing_a_process_ends_the_other_and_the_run_goes_on(machines, alone) -> None:
    for lost in (1, 0):
        ended = machines.train(
            (TRAINING, TRAINING), tuple({2 * 2 + 1: signal.SIGKILL} if lost == rank else {} for rank in (0, 1))
        )
        assert ended[lost].code == 128 + signal.SIGKILL
        line = error(ended[1 - lost])
        assert "connection" in line
        assert "the same command" in line
        assert ".cc" not in line
    last = machines.train()
    assert [process.code for process in last] == [0, 0]
    assert "resuming after step 4 " in last[0].said
    assert losses(machines.first) == pytest.approx(alone, rel=1e-6)


def slow_validation(seconds: float) -> Watch:
    """Makes the first forward pass of the first validation take this long, after it has written a file."""

    def watch(event: Callable[[], None]) -> None:
        def hook(module: Any, *_: Any) -> None:
            if type(module).__name__ == "UNet2DConditionModel" and not module.training and not Path("validates").exists():
                Path("validates").touch()
                time.sleep(seconds)

        register_module_forward_hook(hook)

    return watch


def test_a_validation_longer_than_the_patience_is_waited_for(machines) -> None:
    assert [ended.code for ended in machines.train((slow_validation(2 * PATIENCE), id))] == [0, 0]


def test_a_machine_that_stops_during_a_validation_ends_the_other(machines) -> None:
    first, second = machines.start((slow_validation(60), id))
    machines.wait_for_validation()
    os.kill(second.pid, signal.SIGSTOP)
    before = time.monotonic()
    assert re.search(rf"process 1 of 2 .*{socket.gethostname()}.* {PATIENCE:g} s.*the same command", error(first.wait()))
    assert time.monotonic() - before < 3 * PATIENCE
    os.kill(second.pid, signal.SIGKILL)
    second.wait()


@pytest.mark.parametrize("watch", [TRAINING, file_changes(Path("data/work/train-"))], ids=["trains", "saves"])
def test_a_first_machine_that_stops_ends_the_other(machines, watch) -> None:
    first, second = machines.start((watch, id), ({9: signal.SIGSTOP}, {}))
    assert first.stopped()
    before = time.monotonic()
    assert re.search(rf"process 0 of 2 .* {PATIENCE:g} s.*the same command", error(second.wait()))
    assert time.monotonic() - before < 3 * PATIENCE
    os.kill(first.pid, signal.SIGKILL)
    first.wait()


def test_a_store_that_stops_ends_all(machines) -> None:
    port = free_port()

    def serve() -> None:
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        time.sleep(100)
        del store

    agent = Victim(serve)
    processes = machines.start((slow_validation(60), id), MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    machines.wait_for_validation()
    os.kill(agent.pid, signal.SIGSTOP)
    for process in processes:
        assert re.search(rf"process 0 of 2 .*store.* {PATIENCE:g} s.*the same command", error(process.wait()))
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()


def test_other_parameters_are_refused_on_all_machines(machines) -> None:
    machines.change("train", learning_rate=0.5)
    for ended in machines.train():
        assert re.search(r"process 1 of 2 .*learning_rate \(0.5 instead of 0.001\)", error(ended))
    assert not list(machines.first.glob("data/work/train-*"))


def test_other_caches_are_refused_on_all_machines(machines) -> None:
    manifest = machines.second / "data/latents/manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    for ended in machines.train():
        assert re.search(r"process 1 of 2 .*differs.* in latents:", error(ended))


def test_lacking_caches_end_all_machines_at_once(machines) -> None:
    shutil.rmtree(machines.second / "data/embeds")
    before = time.monotonic()
    first, second = map(error, machines.train())
    assert time.monotonic() - before < 30
    assert re.match(r"error: data/embeds: missing; run `t2i encode captions`", second)
    assert re.match(r"error: process 1 of 2 .*data/embeds: missing; run `t2i encode captions`", first)
