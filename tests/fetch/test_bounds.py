import os
import signal
import time

import psutil
import pytest

from t2i.fetch.bounds import Bounded


def work(content: bytes) -> str:
    """Does what its input says."""
    match content:
        case b"spin":
            sum(1 for _ in iter(int, 1))
        case b"spin in C":
            pow(3, 10**9)  # one long C call: no signal handler in Python runs
        case b"hoard":
            return str(len(b"x" * 10**9))
        case b"crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"end":
            os._exit(3)
        case b"refuse":
            raise ValueError("no: \ud800 is none")
        case b"pid":
            return str(os.getpid())
        case b"rest":
            time.sleep(1)
    return content.decode()


def test_bounded_returns_the_result_of_another_process() -> None:
    with Bounded(work, 5.0, 10**8) as bounded:
        assert bounded(b"a") == "a"
        assert bounded(b"") == ""
        assert bounded(b"b" * 10**7) == "b" * 10**7
        assert os.getpid() != int(bounded(b"pid")) == int(bounded(b"pid"))


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"spin", TimeoutError, "more than 0.3 seconds of processor time"),
        (b"spin in C", TimeoutError, "more than 0.3 seconds of processor time"),
        (b"hoard", MemoryError, "more than 95 MB of memory"),
        (b"crash", ChildProcessError, "SIGKILL"),
        (b"end", ChildProcessError, "code 3"),
        (b"refuse", ValueError, r"^no: \\ud800 is none$"),
    ],
)
def test_a_call_after_a_failed_call_works(content, error, said) -> None:
    with Bounded(work, 0.3, 10**8) as bounded:
        for _ in range(2):
            with pytest.raises(error, match=said):
                bounded(content)
            assert bounded(b"next") == "next"


def test_only_processor_time_of_the_same_call_counts() -> None:
    with Bounded(work, 0.3, 10**8) as bounded:
        assert bounded(b"rest") == "rest"
        before = bounded(b"pid")
        for _ in range(3000):
            bounded(b"x" * 1000)
        assert bounded(b"pid") == before


def test_the_process_ends_with_the_block() -> None:
    with Bounded(work, 5.0, 10**8) as bounded:
        process = int(bounded(b"pid"))
        assert psutil.pid_exists(process)
    assert not psutil.pid_exists(process)
