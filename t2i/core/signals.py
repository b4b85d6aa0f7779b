"""Interrupts: the first signal requests a stop at the next safe point, the second one stops the process at once."""

import contextlib
import ctypes
import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any


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

    When a parent process dies, Linux sends one SIGTERM for each of its threads.
    """
    return number == signal.SIGTERM and time.monotonic() - first_at < 1


def end_with_parent() -> None:
    """Asks Linux for SIGTERM when the parent process dies (prctl's PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
