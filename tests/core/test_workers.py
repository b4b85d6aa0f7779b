import os
import signal
from collections.abc import Callable
from functools import partial

import pytest

from t2i.core.workers import Workers

pytestmark = pytest.mark.slow


def start(offset: int, number: int, processes: int) -> Callable[[object], bytes]:
    if offset < 0:
        raise ValueError(f"no offset below 0, got {offset}")
    return partial(work, offset, number)


def work(offset: int, number: int, task: object) -> bytes:
    match task:
        case int():
            return f"{task + offset} {number} {os.getpid()}".encode()
        case "file":
            open("/no/such/file").close()
        case "memory":
            raise MemoryError
        case "device":
            raise RuntimeError("device: out of memory")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError(f"unknown: {task}")


def test_each_process_has_a_number_and_answers_come_in_the_order_of_the_tasks() -> None:
    with Workers(partial(start, 10), 2, "some.setting") as workers:
        answers = [answer.result().split() for answer in [workers.submit(task) for task in range(40)]]
    assert [int(value) for value, _, _ in answers] == [*range(10, 50)]
    assert {number for _, number, _ in answers} == {b"0", b"1"}
    assert len({process for _, _, process in answers} - {str(os.getpid()).encode()}) == 2


@pytest.mark.parametrize(
    ("task", "kind", "said"),
    [
        ("what", ValueError, "unknown: what"),
        ("file", ValueError, "No such file .*'/no/such/file'"),
        ("memory", ValueError, "not enough memory"),
        ("device", RuntimeError, "device: out of memory"),
    ],
)
def test_an_error_comes_back_with_its_message_and_the_process_goes_on(task, kind, said) -> None:
    with Workers(partial(start, 0), 1, "some.setting") as workers:
        refused, fine = workers.submit(task), workers.submit(1)
        with pytest.raises(kind, match=said):
            refused.result()
        assert fine.result().startswith(b"1 ")


def test_an_error_at_the_start_is_that_of_every_task() -> None:
    with Workers(partial(start, -3), 1, "some.setting") as workers:
        for answer in [workers.submit(1), workers.submit(2)]:
            with pytest.raises(ValueError, match="no offset below 0, got -3"):
                answer.result()


def test_a_killed_process_is_an_error_that_names_the_setting() -> None:
    with Workers(partial(start, 0), 1, "some.setting") as workers:
        with pytest.raises(ValueError, match=r"ended with SIGKILL; if memory is short, lower `some\.setting`"):
            workers.submit("die").result()
        with pytest.raises(ValueError, match="SIGKILL"):
            workers.submit(1).result()


def test_a_worker_may_have_workers() -> None:
    with Workers(start_nested, 1, "some.setting") as workers:
        assert workers.submit(5).result().startswith(b"6 ")


def start_nested(number: int, processes: int) -> Callable[[object], bytes]:
    inner = Workers(partial(start, 1), 1, "some.other")
    return lambda task: inner.submit(task).result()
