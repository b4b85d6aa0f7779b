"""Selection: which records of a split are kept, drawn by hash in one pass over them, whatever their order and number."""

import heapq
from dataclasses import dataclass

from t2i.data.chance import hash_fraction


@dataclass(frozen=True)
class Kept:
    """A record that is kept, and where its image waits."""

    key: str
    rank: float
    """In [0, 1): the smaller, the sooner it is drawn."""
    captions: tuple[str, ...]
    extension: str
    offset: int
    """Bytes from the start of the spool."""
    size: int
    """Bytes."""


class Selection:
    """The records of one split with the smallest ranks.

    Of n records that come in an order by chance, some most * (1 + ln(n / most)) are taken on their way to the last `most`.
    """

    def __init__(self, most: int | None, seed: int) -> None:
        self.kept: dict[str, Kept] = {}
        self._most, self._seed = most, seed
        self._worst: list[tuple[float, str]] = []

    def rank(self, identity: str) -> float:
        """Returns a record's place in the draw, which depends on the seed and its identity alone."""
        return hash_fraction(f"{self._seed}:{identity}")

    def takes(self, rank: float) -> bool:
        """Returns whether a record of this rank would be kept, as far as is known by now."""
        return self._most is None or len(self.kept) < self._most or rank < -self._worst[0][0]

    def add(self, record: Kept) -> None:
        """Keeps a record; where there are too many, the one of the largest rank goes."""
        self.kept[record.key] = record
        if self._most is not None:
            heapq.heappush(self._worst, (-record.rank, record.key))
            if len(self.kept) > self._most:
                del self.kept[heapq.heappop(self._worst)[1]]

    def in_order(self) -> list[Kept]:
        """Returns what is kept, sorted by key."""
        return sorted(self.kept.values(), key=lambda record: record.key)
