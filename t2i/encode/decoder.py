"""What a process that decodes images does: it writes their views to memory that it shares. Imports no torch."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.core.machine import keep_freed_memory
from t2i.data.crops import Interpolation, Place, Size, crops
from t2i.data.decoding import decode

FREED_BYTES = 64 << 20
"""Freed memory that the process keeps for the next image: getting it anew for each image is a fifth of the time."""


class Task(NamedTuple):
    """An image to decode."""

    shard: str
    """Path of the shard."""
    offset: int
    size: int
    """Place of the image in the shard, in bytes."""
    views: Sequence[tuple[Place, bool]]
    """Place and flip of each view."""
    slots: Sequence[int]
    """Where each view goes in the memory."""


class How(NamedTuple):
    """What is the same for all images."""

    size_px: Size
    interpolation: Interpolation
    background: str


def start(memory: Any, how: How, number: int, processes: int) -> Callable[[Task], bytes]:
    """Returns a function that decodes an image into shared memory, and answers with the geometries of its views as JSON."""
    del number, processes
    keep_freed_memory(FREED_BYTES)
    return partial(_decode, slots_of(memory, how.size_px), how)


def slots_of(memory: Any, size_px: Size) -> NDArray[np.uint8]:
    """Returns shared memory as slots [n, h, w, 3], one for each view."""
    return np.frombuffer(memory, np.uint8).reshape(-1, *size_px, 3)


def _decode(slots: NDArray[np.uint8], how: How, task: Task) -> bytes:
    with open(task.shard, "rb") as shard:
        shard.seek(task.offset)
        image = decode(shard.read(task.size), how.background)
    geometries = []
    for slot, seen in zip(task.slots, crops(image, how.size_px, how.interpolation, task.views), strict=True):
        slots[slot] = seen.levels
        geometries.append(seen.geometry)
    return json.dumps(geometries).encode()
