"""Bounds: runs a function on untrusted bytes in a separate process, which ends if it takes too much time or memory."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType

import psutil

from t2i.core.signals import end_with_parent

_SPAWN = multiprocessing.get_context("spawn")  # exists on every system
_RESULT, _ERROR, _MEMORY = "rem"
_LOOK_SECONDS = 0.02
"""Time between two looks at a process that has not answered."""


class Bounded:
    """Calls a function in a separate process, so that no input can hang or crash this process or use up its memory.

    A signal handler in Python would wait until a decoder's C call returns, which can take hours. This process instead looks at
    the other one while it waits, and kills it during the call; the next call starts a new one. The time limit is on processor
    time, not on wall-clock time: other work on the machine, or a pause, does not make an input too slow.
    """

    def __init__(self, function: Callable[[bytes], str], seconds: float, max_bytes: int) -> None:
        self._function, self._seconds, self._max_bytes = function, seconds, max_bytes
        self._start()

    def __enter__(self) -> "Bounded":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the process."""
        self._end()

    def __call__(self, content: bytes) -> str:
        """Returns the result of the function.

        Raises:
            ValueError: if the function raises it; with the same message.
            TimeoutError: if the function takes more than `seconds` of processor time.
            MemoryError: if the process grows by more than `max_bytes`.
            ChildProcessError: if the function ends the process.
        """
        try:
            self._pipe.send_bytes(content)
            self._wait()
            answer = self._pipe.recv_bytes().decode()
        except (TimeoutError, MemoryError):
            self._end()
            self._start()
            raise
        except (EOFError, OSError, psutil.Error):
            self._process.join()
            ended_by = -(self._process.exitcode or 0)
            self._pipe.close()
            self._start()
            name = signal.Signals(ended_by).name if ended_by > 0 else f"code {-ended_by}"
            raise ChildProcessError(f"the process ended with {name}") from None
        kind, text = answer[0], answer[1:]
        if kind == _RESULT:
            return text
        raise ValueError(text) if kind == _ERROR else self._too_large()

    def _wait(self) -> None:
        """Waits for an answer, and raises an error if the process takes too much for it."""
        if self._pipe.poll(_LOOK_SECONDS):
            return
        before = _processor_seconds(self._seen) - _LOOK_SECONDS
        while not self._pipe.poll(_LOOK_SECONDS):
            if _processor_seconds(self._seen) - before > self._seconds:
                raise TimeoutError(f"more than {self._seconds:g} seconds of processor time")
            if self._seen.memory_info().rss - self._at_first > self._max_bytes:
                raise self._too_large()

    def _too_large(self) -> MemoryError:
        return MemoryError(f"more than {self._max_bytes >> 20} MB of memory")

    def _start(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(self._function, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._pipe.recv_bytes()  # the process has started
        except EOFError:
            self._process.join()
            raise ChildProcessError(
                f"the process that decodes images does not start: {sys.executable} ended with code {self._process.exitcode}"
            ) from None
        self._seen = psutil.Process(self._process.pid)
        self._at_first = self._seen.memory_info().rss

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _serve(function: Callable[[bytes], str], pipe: Connection) -> None:
    """Answers calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    pipe.send_bytes(b"")
    while True:
        try:
            content = pipe.recv_bytes()
        except EOFError:
            os._exit(0)
        try:
            answer = _RESULT + function(content)
        except ValueError as error:
            answer = _ERROR + str(error)
        except MemoryError:
            answer = _MEMORY
        # Bytes, not a pickle: an attacked decoder cannot run code in the parent.
        pipe.send_bytes(answer.encode(errors="backslashreplace"))
