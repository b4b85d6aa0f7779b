"""Workers: processes on this machine that share tasks."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

from t2i.core.signals import end_with_parent

SPAWN = multiprocessing.get_context("spawn")
"""How a process is started: with no thread and no lock of this one, unlike a fork."""

Start = Callable[[int, int], Callable[[Any], bytes]]
"""Called in each process with the number of its device, counted from 0, and the number of processes that share its machine;
returns the function that does a task."""

_DONE, _REFUSED, _FAILED = b"+", b"-", b"!"


class Workers:
    """Processes that each do one task at a time. Each belongs to a thread, which waits for its answers.

    An answer is bytes, not a pickle: a process that an image has taken over cannot run code in this one.

    Args:
        start: called in each process before its first task.
        processes: the number of processes.
        setting: the parameter that gives this number.
    """

    def __init__(self, start: Start, processes: int, setting: str) -> None:
        self._setting = setting
        self._processes: list[tuple[SpawnProcess, Connection]] = []
        try:
            for number in range(processes):
                self._processes.append(_started(start, number, processes))
        except BaseException:
            self._end()
            raise
        self._free, self._own = list(self._processes), threading.local()
        self._threads = ThreadPoolExecutor(max(1, processes), "worker", self._take_process)

    def __enter__(self) -> "Workers":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the processes."""
        self.close()

    def close(self) -> None:
        """Ends the processes, in the middle of their work if there is any."""
        for process, _ in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        self._end()

    def submit(self, task: Any) -> Future[bytes]:
        """Gives a task to the next free process, and returns its future answer.

        The answer raises a ValueError or a RuntimeError with the message of the one that ended the task, or a ValueError if the
        process has ended.
        """
        return self._threads.submit(self._do, task)

    def _end(self) -> None:
        for process, pipe in self._processes:
            process.kill()
            process.join()
            pipe.close()

    def _take_process(self) -> None:
        self._own.process, self._own.pipe = self._free.pop()

    def _do(self, task: Any) -> bytes:
        try:
            self._own.pipe.send(task)
            answer: bytes = self._own.pipe.recv_bytes()
        except (EOFError, OSError):
            raise ValueError(self._ended()) from None
        return content_of(answer)

    def _ended(self) -> str:
        self._own.process.join(5)
        ended_by = -(self._own.process.exitcode or 0)
        name = signal.Signals(ended_by).name if ended_by > 0 else f"code {-ended_by}"
        return f"the process that worked on it ended with {name}; if memory is short, lower `{self._setting}`"


def answer_to(do: Callable[[Any], bytes], task: Any) -> bytes:
    """Does a task; returns its content or its error, for `content_of` in another process."""
    try:
        return _DONE + do(task)
    except MemoryError:
        return _REFUSED + b"not enough memory"
    except (ValueError, OSError) as error:
        return _REFUSED + str(error).encode()
    except RuntimeError as error:
        return _FAILED + str(error).encode()


def content_of(answer: bytes) -> bytes:
    """Returns the content of an answer.

    Raises:
        ValueError, RuntimeError: if the task ended with an error.
    """
    kind, content = answer[:1], answer[1:]
    if kind == _DONE:
        return content
    raise (ValueError if kind == _REFUSED else RuntimeError)(content.decode())


def _started(start: Start, number: int, processes: int) -> tuple[SpawnProcess, Connection]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_serve, args=(theirs, start, number, processes))  # not daemonic: it may have its own
    if os.name == "posix":
        resource_tracker.ensure_running()  # else the first `start` below starts it, which lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        process.start()  # with SIGINT blocked: Ctrl-C must not end it with a traceback while it imports
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return process, ours


def _serve(pipe: Connection, start: Start, number: int, processes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    do = cache(partial(start, number, processes))
    with contextlib.suppress(EOFError, OSError):  # the parent has ended
        while True:
            pipe.send_bytes(answer_to(lambda task: do()(task), pipe.recv()))
    os._exit(0)
