"""Interrupts: the first signal asks for a stop at the next safe place, the second stops at once."""

import contextlib
import ctypes
import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Turns SIGINT and SIGTERM, while it is entered, into a request that a loop can look at."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._received_at = 0.0

    def __enter__(self) -> "Interrupt":
        """Takes the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None:
            if not is_echo(number, self._received_at):
                os._exit(128 + number)
            return
        self.signal, self._received_at = number, time.monotonic()
        with contextlib.suppress(OSError):  # no print: the loop may be writing to sys.stderr at this very moment
            os.write(2, b"\nstopping after this step; once more to stop at once\n")


def is_echo(number: int, first_at: float) -> bool:
    """Whether a SIGTERM repeats one of `first_at` (time.monotonic): Linux sends one for each thread of a dying parent."""
    return number == signal.SIGTERM and time.monotonic() - first_at < 1


def end_with_parent() -> None:
    """Asks Linux for SIGTERM when the parent process dies (prctl's PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
