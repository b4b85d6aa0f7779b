import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.victims import launch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def started(parent: subprocess.Popen, folder: Path) -> list[Path]:
    """Waits until both processes have written a file; returns the files."""
    deadline = time.monotonic() + 60
    while len(found := list(folder.glob("started-*"))) < 2:
        if parent.poll() is not None or time.monotonic() > deadline:
            parent.kill()
            pytest.fail(f"only {len(found)} of 2 processes started")
        time.sleep(0.05)
    return found


def lives(number: int) -> bool:
    """Returns whether a process runs. A zombie does not count: PID 1 of some containers never removes them."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left(processes: list[int]) -> list[int]:
    """Returns the processes that have not ended within 10 s."""
    deadline = time.monotonic() + 10
    while any(map(lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [number for number in processes if lives(number)]


def test_every_process_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PET_NNODES", "2")  # torchrun takes its options from such variables
    code = "import os, pathlib; pathlib.Path(os.environ['RANK'] + '-of-' + os.environ['WORLD_SIZE']).touch()"
    assert launch(code, tmp_path).wait(timeout=60) == 0
    assert {path.name for path in tmp_path.glob("*-of-2")} == {"0-of-2", "1-of-2"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_sets_the_exit_code(tmp_path, number) -> None:
    code = """
import os, pathlib, signal, sys, time
def stop(*_):
    pathlib.Path('stopped-' + os.environ['RANK']).touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path('started-' + os.environ['RANK']).touch()
time.sleep(60)
"""
    parent = launch(code, tmp_path)
    started(parent, tmp_path)
    parent.send_signal(number)
    assert parent.wait(timeout=60) == 128 + number
    assert len(list(tmp_path.glob("stopped-*"))) == 2


def test_no_process_outlives_a_parent_that_is_killed_while_it_starts(tmp_path) -> None:
    code = """
import os, pathlib, time
from t2i.core.signals import end_with_parent
pathlib.Path('started-' + str(os.getpid())).touch()
while not pathlib.Path('killed').exists():
    time.sleep(0.01)
end_with_parent()
time.sleep(60)
"""
    parent = launch(code, tmp_path)
    processes = [int(path.name.removeprefix("started-")) for path in started(parent, tmp_path)]
    parent.kill()
    parent.wait()
    (tmp_path / "killed").touch()
    assert not left(processes)


def test_a_second_ctrl_c_ends_every_process_at_once(tmp_path) -> None:
    code = """
import os, pathlib, time
from t2i.core.signals import Interrupt, end_with_parent
end_with_parent()
with Interrupt():
    pathlib.Path('started-' + str(os.getpid())).touch()
    while True:
        time.sleep(0.1)
"""
    parent = launch(code, tmp_path)
    processes = [int(path.name.removeprefix("started-")) for path in started(parent, tmp_path)]
    parent.send_signal(signal.SIGINT)
    time.sleep(1.5)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=10) == 130
    assert not left(processes)
