"""A pool of processes that read, decode and resize images while the VAE computes, one or two batches ahead of it."""

import json
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from t2i.data.crops import Geometry
from t2i.data.members import Member
from t2i.encode.decoder import How, Task, serve, slots_of
from t2i.encode.views import EncodeImages

_SPAWN = multiprocessing.get_context("spawn")  # a fork would have torch's threads, stopped anywhere


_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(64 << 20)}
"""A decoding process frees an image after each task. By default, glibc then gives its memory back to the system, which clears
it for the next image: a fifth of the time. A process reads these when it starts."""


class Views(NamedTuple):
    """Views for one pass of the VAE."""

    levels: UInt8[Tensor, "b h w 3"]
    """From 0 to 255; black after the last view of `views`. Overwritten after the next batch is asked for."""
    views: list[tuple[Member, Geometry]]
    """Image and geometry of each view."""


class _Planned(NamedTuple):
    """An image to decode."""

    member: Member
    task: Task
    end: int
    """Number of views up to its last one."""


class Pool:
    """Processes that decode images in order, and memory for their views that is theirs and ours.

    The memory is a ring of slots: the slots of a batch are free again when the next one is asked for. It has no name,
    so nothing is left of it whatever ends this process. Each process belongs to a thread, which waits for its answers.
    """

    def __init__(self, section: EncodeImages, members: Sequence[Member], *, batch_size: int, processes: int) -> None:
        self._members = [(member, section.views(member.split, member.key)) for member in members]
        self._batch_size, how = batch_size, How(section.size_px, section.interpolation, section.background)
        processes = min(processes, len(members))
        most = max((len(views) for _, views in self._members), default=1)
        ahead = max(2, -(-2 * processes * most // batch_size))
        memory = _SPAWN.RawArray("B", (1 + ahead) * batch_size * math.prod(how.size_px) * 3)
        self._slots = torch.from_numpy(slots_of(memory, how.size_px))
        self._processes = [_started(memory, how) for _ in range(processes)]
        self._free, self._own = list(self._processes), threading.local()
        self._threads = ThreadPoolExecutor(max(1, processes), "decode", self._take_process)

    def __enter__(self) -> "Pool":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the processes, in the middle of their work if there is any."""
        for process, _ in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process, pipe in self._processes:
            process.join()
            pipe.close()

    def batches(self) -> Iterator[Views]:
        """Yields the views of all images, in batches of the full size.

        Raises:
            ValueError: if an image cannot be decoded, or a process was killed; names the image.
        """
        tasks, waiting, taken = self._tasks(), deque[tuple[Member, Future[list[Geometry]]]](), 0
        following, views = next(tasks, None), list[tuple[Member, Geometry]]()
        while True:
            while following and following.end <= taken + len(self._slots):
                waiting.append((following.member, self._threads.submit(self._decode, following)))
                following = next(tasks, None)
            while waiting and len(views) < self._batch_size:
                member, answer = waiting.popleft()
                views += [(member, geometry) for geometry in answer.result()]
            if not views:
                return
            batch, views = views[: self._batch_size], views[self._batch_size :]
            levels = self._slots[taken % len(self._slots) :][: self._batch_size]
            levels[len(batch) :] = 0
            yield Views(levels, batch)
            taken += len(batch)

    def _tasks(self) -> Iterator[_Planned]:
        end = 0
        for member, views in self._members:
            start, end = end, end + len(views)
            slots = [number % len(self._slots) for number in range(start, end)]
            yield _Planned(member, Task(str(member.shard), member.offset, member.size, views, slots), end)

    def _take_process(self) -> None:
        self._own.process, self._own.pipe = self._free.pop()

    def _decode(self, planned: _Planned) -> list[Geometry]:
        place = f"{planned.member.shard}: record {planned.member.key}"
        try:
            self._own.pipe.send(planned.task)
            answer = json.loads(self._own.pipe.recv_bytes())
        except (EOFError, OSError):
            raise ValueError(f"{place}: {self._ended()}") from None
        if "error" in answer:
            raise ValueError(f"{place}: {answer['error']}")
        return [Geometry(tuple(size), tuple(crop), flipped) for size, crop, flipped in answer["geometries"]]

    def _ended(self) -> str:
        self._own.process.join(5)
        ended_by = -(self._own.process.exitcode or 0)
        name = signal.Signals(ended_by).name if ended_by > 0 else f"code {-ended_by}"
        return f"the process that decodes it ended with {name}; if memory is short, lower `runtime.decode_processes`"


def _started(memory: object, how: How) -> tuple[SpawnProcess, Connection]:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=serve, args=(theirs, memory, how), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    environment = dict(os.environ)
    os.environ.update({name: value for name, value in _KEEP_MEMORY.items() if name not in os.environ})
    try:
        process.start()  # with SIGINT blocked: Ctrl-C must not end it with a traceback while it imports
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return process, ours
