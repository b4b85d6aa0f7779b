"""Order: which record training uses at each position of its endless sequence of epochs, without a list of the records.

An epoch is a sequence of windows. A window has some shards, and the records of these shards are shuffled among themselves.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from t2i.core.params import Section
from t2i.data.counter import Key, key_of, words

_ROUNDS = 8
_BLOCK = 1024


class Global(Section):
    """One window of all shards: each batch is a random sample of all records, and reads from shards all over the set."""

    name: Literal["global"]

    def __call__(self, count: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
        """Returns the numbers of the `count` shards in the order of an epoch, and how many of them form a window."""
        del seed, epoch
        return np.arange(count), count


class Windows(Section):
    """Windows of `shards` shards each, drawn anew in every epoch: while one is trained on, no other shard is read."""

    name: Literal["windows"]
    shards: int = Field(ge=1)
    """Number of shards whose records are shuffled among themselves; the last window of an epoch can have fewer."""

    def __call__(self, count: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
        """Returns the numbers of the `count` shards in the order of an epoch, and how many of them form a window."""
        return shuffled(np.arange(count), count, key_of(seed, "shards", epoch)), self.shards


Order = Annotated[Global | Windows, Field(discriminator="name")]
"""Section `train.order`."""


class Window(NamedTuple):
    """Shards whose records are shuffled among themselves."""

    number: int
    """Its number in the endless sequence of windows, counted from 0."""
    shards: np.ndarray
    """The numbers of its shards, as `Index` counts them."""
    start: int
    """Position of its first record in the endless sequence of epochs."""
    end: int
    """Position after its last record."""


class Epoch:
    """An epoch of training: all records, each as often as it is repeated, in an order that depends on the seed and the epoch.

    Args:
        sizes: number of records in each shard; the records are numbered from shard to shard.
        repeats: how often an epoch has a record, for those that it does not have once.
        order: divides the shards into windows.
    """

    def __init__(self, sizes: Sequence[int], repeats: Mapping[int, int], order: Order) -> None:
        self._repeated = np.array(sorted(repeats), np.int64)
        more = np.array([repeats[record] - 1 for record in sorted(repeats)], np.int64)
        self._extra = np.concatenate([[0], np.cumsum(more)])
        """For each repeated record, the number of repeats of the records before it."""
        records = np.cumsum(np.array(sizes, np.int64))
        self._ends = records + self._extra[np.searchsorted(self._repeated, records)]
        """For each shard, the number of places up to its end before the epoch is shuffled."""
        self._sizes = np.diff(self._ends, prepend=0)
        self._size, self._order = int(self._sizes.sum()), order
        self._arranged = lru_cache(maxsize=2)(self._arrange)
        self._block = lru_cache(maxsize=4)(self._records)

    def __len__(self) -> int:
        return self._size

    def records(self, positions: Sequence[int], seed: int) -> list[int]:
        """Returns the records at positions in the endless sequence of epochs, counted from 0."""
        found = []
        for position in positions:
            epoch, place = divmod(position, len(self))
            block, at = divmod(place, _BLOCK)
            found.append(self._block(seed, epoch, block)[at])
        return found

    def windows_from(self, position: int, seed: int) -> Iterator[Window]:
        """Yields the window that a position is in, and all later ones, without end.

        These are the shards that training needs from this position on, in order: a store of shards can fetch the next window
        during this one, and drop this one at its end, except the shards that the first window of a new epoch has too.
        """
        first, place = divmod(position, len(self))
        for epoch in itertools.count(first):
            shards, bounds, size = self._arranged(seed, epoch)
            windows = len(bounds) - 1
            for window in range(int(np.searchsorted(bounds, place, side="right")) - 1, windows):
                start, end = (epoch * len(self) + bound for bound in bounds[window : window + 2].tolist())
                yield Window(epoch * windows + window, shards[window * size : (window + 1) * size], start, end)
            place = 0

    def _arrange(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns the shards in the order of an epoch, the places between which its windows lie, and their number of shards."""
        shards, size = self._order(len(self._sizes), seed, epoch)
        starts = np.cumsum(self._sizes[shards]) - self._sizes[shards]
        return shards, np.append(starts[::size], len(self)), size

    def _records(self, seed: int, epoch: int, block: int) -> list[int]:
        """Returns the records of a block of places of an epoch: many are hardly slower to compute than one."""
        first = epoch * len(self) + block * _BLOCK
        last = min(first + _BLOCK, (epoch + 1) * len(self))
        found: list[int] = []
        for window in self.windows_from(first, seed):
            places = np.arange(max(first, window.start), min(last, window.end)) - window.start
            images = shuffled(places, window.end - window.start, key_of(seed, "order", window.number))
            found += self._record(self._place(images, window.shards)).tolist()
            if window.end >= last:
                break
        return found

    def _place(self, places: np.ndarray, shards: np.ndarray) -> np.ndarray:
        """Returns the places before the epoch is shuffled, from those in some of its shards."""
        ends = np.cumsum(self._sizes[shards])
        at = np.searchsorted(ends, places, side="right")
        unshuffled: np.ndarray = places - ends[at] + self._ends[shards[at]]  # counted from the end of the shard
        return unshuffled

    def _record(self, places: np.ndarray) -> np.ndarray:
        """Returns the records at places of the epoch before it is shuffled, where a record's repeats stand side by side."""
        if not len(self._repeated):
            return places
        group = np.searchsorted(self._repeated + self._extra[:-1], places, side="right")  # repeated records up to here
        last = np.maximum(group - 1, 0)
        return np.where(group > 0, np.maximum(self._repeated[last], places - self._extra[group]), places)


def shuffled(places: np.ndarray, count: int, key: Key) -> np.ndarray:
    """Returns the images of places under a permutation of the numbers below `count`, chosen by a key.

    A Feistel network permutes the numbers of an even number of bits. Numbers outside the range go through it again, less than 4
    times on average (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half = max(1, (count - 1).bit_length() + 1 >> 1)
    images = places.copy()
    outside = np.ones(len(places), bool)
    while outside.any():
        images[outside] = _feistel(images[outside], half, key)
        outside = images >= count
    return images


def _feistel(numbers: np.ndarray, half: int, key: Key) -> np.ndarray:
    mask = (1 << half) - 1
    left, right = numbers >> half, numbers & mask
    for turn in range(_ROUNDS):
        hashed, *_ = words(key, turn, np.zeros(1, np.int32), right.astype(np.int32))
        left, right = right, left ^ hashed.view(np.uint32).astype(np.int64) >> (32 - half)
    return left << half | right
