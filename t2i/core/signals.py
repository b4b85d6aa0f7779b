"""Interrupts: the first signal requests a stop at the next safe point, the second one stops the process at once."""

import _thread
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import psutil


class Interrupted(Exception):
    """A signal asked for a stop, in the middle of work that can be thrown away."""


class Interrupt:
    """Inside a `with` block, records SIGINT and SIGTERM as a stop request, which a loop can check in `signal`."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._received_at = 0.0

    def __enter__(self) -> "Interrupt":
        """Installs the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted after a signal."""
        if self.signal is not None:
            raise Interrupted

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None:
            if not is_echo(number, self._received_at):
                os._exit(128 + number)
            return
        self.signal, self._received_at = number, time.monotonic()
        with contextlib.suppress(OSError):  # no print: the signal may arrive while the loop writes to sys.stderr
            os.write(2, b"\nstopping after a checkpoint; interrupt again to stop at once\n")


def is_echo(number: int, first_at: float) -> bool:
    """Returns whether a SIGTERM repeats the signal received at `first_at` (time.monotonic), less than 1 s ago.

    A signal that goes to several processes comes again if one of them passes it on, or ends and so ends this one.
    """
    return number == signal.SIGTERM and time.monotonic() - first_at < 1


STARTED_BY = "T2I_STARTED_BY"
"""Environment variable: the ID of a process that the processes below it must not outlive, besides their parents."""
_SHELLS = {"ash", "bash", "cmd.exe", "dash", "fish", "ksh", "powershell.exe", "pwsh", "pwsh.exe", "sh", "zsh"}


def end_with_parent() -> None:
    """Starts a thread that sends this process SIGTERM when the process that started it ends or has ended, on every system.

    If a shell started it, as DVC's does, what started the shell counts too.
    """
    threading.Thread(target=_end_with, args=(list(_starters()),), daemon=True, name="end with parent").start()


def _starters() -> Iterator[psutil.Process | None]:
    """Yields the processes that started this one; None for one that has ended, whose place another parent has taken."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process().parent()
        while parent is not None:
            yield parent
            parent = parent.parent() if parent.name() in _SHELLS else None
    spawned_by = multiprocessing.parent_process()
    for number in (os.environ.get(STARTED_BY), spawned_by and spawned_by.pid):
        if number:
            yield _process(int(number))


def _process(number: int) -> psutil.Process | None:
    try:
        return psutil.Process(number)
    except psutil.NoSuchProcess:
        return None


def _end_with(started_by: list[psutil.Process | None]) -> None:
    while all(map(_lives, started_by)):
        time.sleep(0.5)
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGTERM)  # interrupts what the main thread waits for
    else:
        _thread.interrupt_main(signal.SIGTERM)  # os.kill would end the process at once


def _lives(process: psutil.Process | None) -> bool:
    try:
        return process is not None and bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
