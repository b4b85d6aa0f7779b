import io
import os
import signal
import sys

from t2i.core.signals import Interrupt


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
