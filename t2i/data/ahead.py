"""Ahead: has the shards fetched that training reads next, in the order in which it needs them."""

from t2i.data.batches import Batches


class Ahead:
    """Keeps the window of shards on this disk that training is in, and as many shards of the next ones as fit beside it.

    Raises:
        ValueError: if a window may not fit on this disk.
    """

    def __init__(self, batches: Batches) -> None:
        self._records, self._epoch, self._seed = batches.records, batches.epoch, batches.seed
        self._window = range(0)
        self._records.storage.check_room(self._records.window_bytes(batches.order))

    def at(self, position: int) -> None:
        """Says that training has come to a position in the endless sequence of epochs; returns at once.

        Raises:
            ValueError: if the window does not fit on this disk.
        """
        most = self._records.storage.most_bytes
        if most is None or position in self._window:
            return
        windows = self._epoch.windows_from(position, self._seed)
        first = next(windows)
        needed = self._records.shards(first.shards.tolist())
        free = most - sum(needed.values()) - max(needed.values())  # one shard: validation reads others
        while free > 0 and (window := next(windows)).end - first.start < len(self._epoch):
            for path, size in self._records.shards(window.shards.tolist()).items():
                if path not in needed and (free := free - size) >= 0:
                    needed[path] = size
        self._records.storage.need(list(needed))
        self._window = range(first.start, first.end)
