import io
import multiprocessing
import os
import select
import signal
import sys
import time

import pytest

from t2i.core.signals import STARTED_BY, Interrupt, end_with_parent


def test_interrupt_records_a_signal_and_restores_handlers(capfd) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert interrupt.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopping after a checkpoint" in capfd.readouterr().err


def test_interrupt_works_during_a_write_to_stderr(monkeypatch) -> None:
    class Terminal(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, line) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            return len(line)

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Terminal()), write_through=True))
    with Interrupt() as interrupt:
        print("5/200", file=sys.stderr, flush=True)
        assert interrupt.signal == signal.SIGTERM


def test_the_second_signal_ends_the_process_at_once() -> None:
    child = os.fork()
    if child == 0:
        with Interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def asks_too_late(write: int) -> None:
    """Asks to end with a parent that has already ended; writes a byte before."""
    before = os.getppid()
    while os.getppid() == before:
        time.sleep(0.01)
    os.write(write, b".")
    end_with_parent()
    time.sleep(60)


def leave_by_fork(write: int) -> None:
    """Starts a process that knows its parent by the environment alone."""
    os.environ[STARTED_BY] = str(os.getpid())
    if os.fork() == 0:
        asks_too_late(write)


def leave_by_multiprocessing(write: int) -> None:
    multiprocessing.get_context("fork").Process(target=asks_too_late, args=(write,)).start()


@pytest.mark.parametrize("leave", [leave_by_fork, leave_by_multiprocessing])
def test_a_process_ends_if_its_parent_has_ended_before_it_asks(leave) -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            leave(write)
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(parent, 0)
    with open(read, "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"."
        assert select.select([pipe], [], [], 10)[0]
        assert pipe.read(1) == b""  # no process is left that could write
