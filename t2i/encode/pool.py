"""A pool of processes that read, decode and resize images while the VAE computes, one or two batches ahead of it."""

import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from t2i.core.workers import SPAWN, Workers
from t2i.data.crops import Geometry
from t2i.data.members import Member
from t2i.encode.decoder import How, Task, slots_of, start
from t2i.encode.views import EncodeImages


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
    so nothing is left of it whatever ends this process.
    """

    def __init__(self, section: EncodeImages, members: Sequence[Member], *, batch_size: int, processes: int) -> None:
        self._members = [(member, section.views(member.split, member.key)) for member in members]
        self._batch_size, how = batch_size, How(section.size_px, section.interpolation, section.background)
        processes = min(processes, len(members))
        most = max((len(views) for _, views in self._members), default=1)
        ahead = max(2, -(-2 * processes * most // batch_size))
        memory = SPAWN.RawArray("B", (1 + ahead) * batch_size * math.prod(how.size_px) * 3)
        self._slots = torch.from_numpy(slots_of(memory, how.size_px))
        self._workers = Workers(partial(start, memory, how), processes, "runtime.decode_processes")

    def __enter__(self) -> "Pool":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the processes, in the middle of their work if there is any."""
        self._workers.__exit__(kind, error, trace)

    def batches(self) -> Iterator[Views]:
        """Yields the views of all images, in batches of the full size.

        Raises:
            ValueError: if an image cannot be decoded, or a process was killed; names the image.
        """
        tasks, waiting, taken = self._tasks(), deque[tuple[Member, Future[bytes]]](), 0
        following, views = next(tasks, None), list[tuple[Member, Geometry]]()
        while True:
            while following and following.end <= taken + len(self._slots):
                waiting.append((following.member, self._workers.submit(following.task)))
                following = next(tasks, None)
            while waiting and len(views) < self._batch_size:
                member, answer = waiting.popleft()
                views += [(member, geometry) for geometry in _geometries(member, answer)]
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


def _geometries(member: Member, answer: Future[bytes]) -> list[Geometry]:
    try:
        found = json.loads(answer.result())
    except ValueError as error:
        raise ValueError(f"{member.shard}: record {member.key}: {error}") from None
    return [Geometry(tuple(size), tuple(crop), flipped) for size, crop, flipped in found]
