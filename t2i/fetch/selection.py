"""Selection: draws the records of a split by hash, in one pass; the result does not depend on their order or number."""

import heapq
from dataclasses import dataclass

from t2i.data.chance import hash_fraction


@dataclass(frozen=True)
class Kept:
    """A kept record, and the position of its image in the spool."""

    key: str
    place: str
    """Where the record is in its source."""
    rank: float
    """In [0, 1); records with smaller ranks are drawn first."""
    captions: tuple[str, ...]
    extension: str
    offset: int
    """Position of the image in the spool, in bytes."""
    size: int
    """Size of the image, in bytes."""
    repeats: int = 1
    """How often training uses the record in an epoch."""


class Selection:
    """The `limit` records of one split with the smallest ranks; all records if `limit` is None.

    From n records in random order, about limit * (1 + ln(n / limit)) are added, of which the last `limit` are kept.
    """

    def __init__(self, limit: int | None, seed: int) -> None:
        self.kept: dict[str, Kept] = {}
        self._limit, self._seed = limit, seed
        self._worst: list[tuple[float, str]] = []

    def rank(self, identity: str) -> float:
        """Returns the rank of a record, in [0, 1), which depends only on the seed and the record's identity."""
        return hash_fraction(f"{self._seed}:{identity}")

    def takes(self, rank: float) -> bool:
        """Returns whether a record with this rank belongs to the selection so far."""
        return self._limit is None or len(self.kept) < self._limit or rank < -self._worst[0][0]

    def add(self, record: Kept) -> Kept | None:
        """Adds a record; if there are then too many, removes the one with the largest rank, and returns it."""
        self.kept[record.key] = record
        if self._limit is None:
            return None
        heapq.heappush(self._worst, (-record.rank, record.key))
        if len(self.kept) <= self._limit:
            return None
        return self.kept.pop(heapq.heappop(self._worst)[1])

    def in_order(self) -> list[Kept]:
        """Returns the kept records, sorted by key."""
        return sorted(self.kept.values(), key=lambda record: record.key)
