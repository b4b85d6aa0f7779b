"""Bounds: a function of untrusted bytes, run in a process of its own whose time and memory the kernel bounds."""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from t2i.core.signals import end_with_parent

_FORK = multiprocessing.get_context("fork")  # starts in milliseconds, with every library loaded
_RESULT, _ERROR, _MEMORY = "rem"


class Bounded:
    """Calls a function in a process of its own, one call after the other, so that no input hangs, starves or crashes this one.

    A handler of Python's would wait for a decoder's C call to return, which can be hours; the kernel ends the process in its
    midst, and the next call gets a new one. What counts is the processor's time, not the clock's: neither other work on the
    machine nor a pause makes an input a slow one.
    """

    def __init__(self, function: Callable[[bytes], str], seconds: float, most_bytes: int) -> None:
        self._function, self._seconds, self._most_bytes = function, seconds, most_bytes
        self._start()

    def __enter__(self) -> "Bounded":
        """Gives itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def __call__(self, content: bytes) -> str:
        """Returns the function's result.

        Raises:
            ValueError: as the function raises it.
            TimeoutError: where it took more than `seconds` of processor time.
            MemoryError: where it asked for more than `most_bytes` (on Linux).
            ChildProcessError: where it ended the process.
        """
        try:
            self._pipe.send_bytes(content)
            answer = self._pipe.recv_bytes().decode()
        except (EOFError, OSError):
            self._process.join()
            ended_by = -(self._process.exitcode or 0)
            self._pipe.close()
            self._start()
            if ended_by == signal.SIGPROF:
                raise TimeoutError(f"more than {self._seconds:g} seconds of processor time") from None
            name = signal.Signals(ended_by).name if ended_by > 0 else f"code {-ended_by}"
            raise ChildProcessError(f"the process ended by {name}") from None
        kind, text = answer[0], answer[1:]
        if kind == _RESULT:
            return text
        raise ValueError(text) if kind == _ERROR else MemoryError(f"more than {self._most_bytes >> 20} MB of memory")

    def _start(self) -> None:
        self._pipe, theirs = _FORK.Pipe()
        arguments = (self._function, self._seconds, self._most_bytes, self._pipe, theirs)
        self._process = _FORK.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()


def _serve(function: Callable[[bytes], str], seconds: float, most_bytes: int, parents: Connection, pipe: Connection) -> None:
    """Answers calls until the pipe is closed or a bound ends the process."""
    parents.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    end_with_parent()
    _limit_memory(most_bytes)
    while True:
        try:
            content = pipe.recv_bytes()
        except EOFError:
            os._exit(0)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer = _RESULT + function(content)
        except ValueError as error:
            answer = _ERROR + str(error)
        except MemoryError:
            answer = _MEMORY
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(answer.encode(errors="backslashreplace"))  # bytes, not pickles: what a decoder was made to do ends here


def _limit_memory(most_bytes: int) -> None:
    """Lets the process have so much memory besides what it has now; elsewhere than on Linux, nothing bounds it."""
    if sys.platform == "linux":
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # data and stack
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = held + most_bytes if hard == resource.RLIM_INFINITY else min(held + most_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
