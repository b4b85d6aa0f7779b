import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore, TCPStore

from t2i.model.launch import _free_port
from t2i.train.group import Group

ROOT = Path(__file__).parents[2]
GROUP = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def joining(folder: Path, environment: dict[str, str], minutes: float) -> subprocess.Popen:
    code = f"from t2i.train import group; group.JOIN_MINUTES = {minutes}\nwith group.joined('cpu') as of: print(of.size)"
    code = f"from stages.console import run; run(lambda: exec({code!r}))"
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]} | environment
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_a_process_without_its_group_gives_up(tmp_path) -> None:
    process = joining(tmp_path, GROUP | {"MASTER_PORT": str(_free_port())}, 0.02)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    waits, error = said.splitlines()
    assert re.search(r"process 0 of 2 .*127.0.0.1:\d+", waits)
    assert re.search(r"^error: .*WORLD_SIZE", error)


@pytest.mark.slow
def test_a_process_names_those_that_do_not_come(tmp_path) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as that of torchrun, which is there before them
    place = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    process = joining(tmp_path, GROUP | place | {"WORLD_SIZE": "3", "RANK": "1"}, 0.02)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"^error: process 1 of 3 .*not there: 0, 2\)", said.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_the_group(tmp_path, number) -> None:
    process = joining(tmp_path, GROUP | {"MASTER_PORT": str(_free_port())}, 1)
    assert process.stderr is not None
    assert "process 0 of 2" in process.stderr.readline()
    process.send_signal(number)
    assert process.wait(timeout=10) == -number


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_part_of_a_group_is_refused(tmp_path, lacking) -> None:
    group = {name: value for name, value in (GROUP | {"MASTER_PORT": "1"}).items() if name != lacking}
    process = joining(tmp_path, group, 1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(rf"^error: WORLD_SIZE=2 .*{lacking}=.*unset WORLD_SIZE", said)


@pytest.mark.slow
@pytest.mark.parametrize("left", [{}, {"WORLD_SIZE": "1"}, {"RANK": "1"}, {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "1"}])
def test_what_a_job_left_behind_makes_no_group(tmp_path, left) -> None:
    process = joining(tmp_path, left, 1)
    assert process.communicate(timeout=60) == ("1\n", "")


def in_all(action: Callable[[Group], Any], size: int) -> list[Any]:
    """Returns what an action gives in each process of a group, or the error that it raises; the processes are threads."""
    store, names = HashStore(), [f"process {rank} (on host-{rank})" for rank in range(size)]
    given: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            given[rank] = action(Group(rank, names, store, None))
        except ValueError as error:
            given[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return given


FACTS = {"train.learning_rate": 0.1, "latents": "a" * 64, "torch": "2.13.0"}


def test_equal_processes_pass_the_comparison() -> None:
    assert in_all(lambda group: group.compare("facts", FACTS), 3) == [None] * 3


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"train.learning_rate": 0.3}, r"in train\.learning_rate \(0\.3 instead of 0\.1\): "),
        ({"latents": "b" * 64}, r"in latents: "),
        ({"torch": "2.12.1", "latents": "b" * 64}, r"in latents, torch \(2\.12\.1 instead of 2\.13\.0\): "),
        ({"train.new": 1}, r"in train\.new \(1 instead of None\): "),
    ],
)
def test_all_processes_name_the_one_that_differs(changed, named) -> None:
    given = in_all(lambda group: group.compare("facts", FACTS | (changed if group.rank == 2 else {})), 4)
    assert len({str(error) for error in given}) == 1
    assert re.search(rf"process 2 \(on host-2\) differs from process 0 \(on host-0\) {named}", str(given[0]))


def test_all_processes_are_told_what_the_first_one_gives() -> None:
    assert in_all(lambda group: group.told("step", group.rank + 7), 3) == [7, 7, 7]
    assert in_all(lambda group: group.told("step", None if group.first else 1), 2) == [None, None]


def test_a_process_on_its_own_waits_for_nobody() -> None:
    group = Group(0, ["the process"], None, None)
    group.compare("facts", FACTS)
    group.wait()
    assert group.agree(15) == 15
    assert group.told("step", 7) == 7
