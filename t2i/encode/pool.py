"""A pool of processes that read, decode and resize images while the VAE computes, one or two batches ahead of it."""

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import cached_property, partial
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from t2i.core.workers import SPAWN, Workers
from t2i.data.crops import Geometry
from t2i.data.members import Member
from t2i.data.records import SPLITS
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
    so nothing is left of it whatever ends this process. The processes start when the first image is there.
    """

    def __init__(self, section: EncodeImages, *, batch_size: int, processes: int) -> None:
        self._section, self._batch_size, self._processes = section, batch_size, processes
        self._how = How(section.size_px, section.interpolation, section.background)
        most = max(section.count(split) for split in SPLITS)
        self._count = (1 + max(2, -(-2 * processes * most // batch_size))) * batch_size

    def close(self) -> None:
        """Ends the processes, in the middle of their work if there is any."""
        if "_started" in self.__dict__:
            self._started[0].close()

    def batches(self, members: Iterable[Member]) -> Iterator[Views]:
        """Yields the views of images, in batches of the full size. Takes images from `members` as memory for them is free.

        Raises:
            ValueError: if an image cannot be decoded, or a process was killed; names the image.
        """
        tasks, waiting, taken = self._tasks(members), deque[tuple[Member, Future[bytes]]](), 0
        following, views = next(tasks, None), list[tuple[Member, Geometry]]()
        while True:
            while following and following.end <= taken + self._count:
                waiting.append((following.member, self._started[0].submit(following.task)))
                following = next(tasks, None)
            while waiting and len(views) < self._batch_size:
                member, answer = waiting.popleft()
                views += [(member, geometry) for geometry in _geometries(member, answer)]
            if not views:
                return
            batch, views = views[: self._batch_size], views[self._batch_size :]
            levels = self._started[1][taken % self._count :][: self._batch_size]
            levels[len(batch) :] = 0
            yield Views(levels, batch)
            taken += len(batch)

    @cached_property
    def _started(self) -> tuple[Workers, UInt8[Tensor, "slots h w 3"]]:
        memory = SPAWN.RawArray("B", self._count * math.prod(self._how.size_px) * 3)
        workers = Workers(partial(start, memory, self._how), self._processes, "runtime.decode_processes")
        return workers, torch.from_numpy(slots_of(memory, self._how.size_px))

    def _tasks(self, members: Iterable[Member]) -> Iterator[_Planned]:
        end = 0
        for member in members:
            views = self._section.views(member.split, member.key)
            first, end = end, end + len(views)
            slots = [number % self._count for number in range(first, end)]
            yield _Planned(member, Task(str(member.shard), member.offset, member.size, views, slots), end)


def _geometries(member: Member, answer: Future[bytes]) -> list[Geometry]:
    try:
        found = json.loads(answer.result())
    except ValueError as error:
        raise ValueError(f"{member.shard}: record {member.key}: {error}") from None
    return [Geometry(tuple(size), tuple(crop), flipped) for size, crop, flipped in found]
