"""Order: which record training uses at each position of its endless sequence of epochs, without a list of the records."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from t2i.data.counter import key_of, words

_ROUNDS = 8
_BLOCK = 1024


class Epoch:
    """An epoch of training: all records, each as often as it is repeated, in an order that depends on the seed and the epoch.

    Args:
        records: number of records.
        repeats: how often an epoch has a record, for those that it does not have once.
    """

    def __init__(self, records: int, repeats: Mapping[int, int]) -> None:
        self._repeated = np.array(sorted(repeats), np.int64)
        more = np.array([repeats[record] - 1 for record in sorted(repeats)], np.int64)
        self._extra = np.concatenate([[0], np.cumsum(more)])
        """For each repeated record, the number of repeats of the records before it."""
        self._size = records + int(self._extra[-1])
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

    def _records(self, seed: int, epoch: int, block: int) -> list[int]:
        """Returns the records of a block of places of an epoch: many are hardly slower to compute than one."""
        places = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, len(self)))
        found: list[int] = self._record(shuffled(places, len(self), seed, epoch)).tolist()
        return found

    def _record(self, places: np.ndarray) -> np.ndarray:
        """Returns the records at places of the epoch before it is shuffled, where a record's repeats stand side by side."""
        if not len(self._repeated):
            return places
        group = np.searchsorted(self._repeated + self._extra[:-1], places, side="right")  # repeated records up to here
        last = np.maximum(group - 1, 0)
        return np.where(group > 0, np.maximum(self._repeated[last], places - self._extra[group]), places)


def shuffled(places: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the images of places under a permutation of the numbers below `count`, chosen by the seed and the epoch.

    A Feistel network permutes the numbers of an even number of bits. Numbers outside the range go through it again, less than 4
    times on average (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half = max(1, (count - 1).bit_length() + 1 >> 1)
    key, images = key_of(seed, "order", epoch), places.copy()
    outside = np.ones(len(places), bool)
    while outside.any():
        images[outside] = _feistel(images[outside], half, key)
        outside = images >= count
    return images


def _feistel(numbers: np.ndarray, half: int, key: tuple[int, int, int, int]) -> np.ndarray:
    mask = (1 << half) - 1
    left, right = numbers >> half, numbers & mask
    for turn in range(_ROUNDS):
        hashed, *_ = words(key, turn, np.zeros(1, np.int32), right.astype(np.int32))
        left, right = right, left ^ hashed.view(np.uint32).astype(np.int64) >> (32 - half)
    return left << half | right
