"""A process that decodes images: writes their views to memory that it shares with its parent. Imports no torch."""

import json
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.core.signals import end_with_parent
from t2i.data.crops import Geometry, Interpolation, Place, Size, crops
from t2i.data.decoding import decode


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


def serve(pipe: Connection, memory: Any, how: How) -> None:
    """Answers each task with the geometries of its views, or with an error, as JSON, until the pipe is closed.

    JSON, not a pickle: an attacked decoder cannot run code in the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    views = slots_of(memory, how.size_px)
    while True:
        try:
            answer = _answer(pipe.recv(), views, how)
            pipe.send_bytes(json.dumps(answer).encode())
        except (EOFError, OSError):  # the parent has ended
            os._exit(0)


def _answer(task: Task, slots: NDArray[np.uint8], how: How) -> dict[str, Any]:
    try:
        return {"geometries": _decode(task, slots, how)}
    except (ValueError, OSError) as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "not enough memory to decode it"}


def slots_of(memory: Any, size_px: Size) -> NDArray[np.uint8]:
    """Returns shared memory as slots [n, h, w, 3], one for each view."""
    return np.frombuffer(memory, np.uint8).reshape(-1, *size_px, 3)


def _decode(task: Task, slots: NDArray[np.uint8], how: How) -> list[Geometry]:
    with open(task.shard, "rb") as shard:
        shard.seek(task.offset)
        image = decode(shard.read(task.size), how.background)
    geometries = []
    for slot, seen in zip(task.slots, crops(image, how.size_px, how.interpolation, task.views), strict=True):
        slots[slot] = seen.levels
        geometries.append(seen.geometry)
    return geometries
