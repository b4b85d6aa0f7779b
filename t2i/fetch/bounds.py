"""Bounds: runs a function on untrusted bytes in a separate process, with limits on time and memory set by the kernel."""

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
    """Calls a function in a separate process, so that no input can hang or crash this process or use up its memory.

    A signal handler in Python would wait until a decoder's C call returns, which can take hours. The kernel instead kills the
    process during the call, and the next call starts a new one. The time limit is on processor time, not on wall-clock time:
    other work on the machine, or a pause, does not make an input too slow.
    """

    def __init__(self, function: Callable[[bytes], str], seconds: float, max_bytes: int) -> None:
        self._function, self._seconds, self._max_bytes = function, seconds, max_bytes
        self._start()

    def __enter__(self) -> "Bounded":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def __call__(self, content: bytes) -> str:
        """Returns the result of the function.

        Raises:
            ValueError: if the function raises it; with the same message.
            TimeoutError: if the function takes more than `seconds` of processor time.
            MemoryError: if the function asks for more than `max_bytes` of memory (on Linux).
            ChildProcessError: if the function ends the process.
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
            raise ChildProcessError(f"the process ended with {name}") from None
        kind, text = answer[0], answer[1:]
        if kind == _RESULT:
            return text
        raise ValueError(text) if kind == _ERROR else MemoryError(f"more than {self._max_bytes >> 20} MB of memory")

    def _start(self) -> None:
        self._pipe, theirs = _FORK.Pipe()
        arguments = (self._function, self._seconds, self._max_bytes, self._pipe, theirs)
        self._process = _FORK.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()


def _serve(function: Callable[[bytes], str], seconds: float, max_bytes: int, parents: Connection, pipe: Connection) -> None:
    """Answers calls until the pipe is closed or the process exceeds a limit."""
    parents.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    end_with_parent()
    _limit_memory(max_bytes)
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
        pipe.send_bytes(
            answer.encode(errors="backslashreplace")
        )  # bytes, not a pickle: an attacked decoder cannot run code in the parent


def _limit_memory(max_bytes: int) -> None:
    """Limits the memory that the process may allocate in addition to what it has now; only on Linux."""
    if sys.platform == "linux":
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # data and stack
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = held + max_bytes if hard == resource.RLIM_INFINITY else min(held + max_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
