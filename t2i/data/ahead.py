"""Ahead: has the shards fetched that training reads next, in the order in which it needs them."""

from t2i.data.batches import Batches


class Ahead:
    """Keeps the windows of shards on this disk that a batch is in, and as many shards of the next ones as fit beside them.

    Raises:
        ValueError: if the windows in which a batch can be do not fit on this disk.
    """

    def __init__(self, batches: Batches) -> None:
        self._records, self._epoch, self._seed = batches.records, batches.epoch, batches.seed
        self._window, self._end = range(0), 0
        if self._records.elsewhere:
            self._records.storage.check_room(self._records.window_bytes(batches.order, batches.batch_size))

    def at(self, first: int, last: int) -> None:
        """Says which positions in the endless sequence of epochs are read next, from the first to the last; returns at once."""
        most = self._records.storage.most_bytes
        if most is None or (first in self._window and last < self._end):
            return
        windows = self._epoch.windows_from(first, self._seed)
        window = next(windows)
        needed, self._window = self._records.shards(window.shards.tolist()), range(window.start, window.end)
        while window.end <= last:
            window = next(windows)
            needed |= self._records.shards(window.shards.tolist())
        self._end = window.end
        free = most - sum(needed.values()) - max(needed.values(), default=0)  # one shard: validation reads others
        while free > 0 and (window := next(windows)).end - first <= len(self._epoch):
            for path, size in self._records.shards(window.shards.tolist()).items():
                if path not in needed and (free := free - size) >= 0:
                    needed[path] = size
        self._records.storage.need(list(needed))
