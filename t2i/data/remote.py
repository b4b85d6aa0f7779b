"""Remote: the shards of all sets at one URL, and a cache of them on this disk. Manifests and indices stay in the sets' folders.

URL/SHA256.tar    a shard, by the hash of its content
"""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Collection
from concurrent.futures import Future, wait
from hashlib import sha256
from pathlib import Path

import numpy as np
from pydantic import Field

from t2i.core.files import in_bytes, in_checkout, work_root
from t2i.core.params import LocalPath, Section
from t2i.data.bucket import Bucket, StoreLost
from t2i.data.copies import Copy, listed, remove, unfinished, use
from t2i.data.storage import File, Folders, Storage

_THREADS = 4
"""How many shards are fetched at once."""

_MOST_USED = 256
"""How many copies are open at once: each takes a file descriptor."""


class ShardCache(Section):
    """Section `runtime.shard_cache`: the copies on this disk of shards that are in use, if `runtime.store` has them."""

    folder: LocalPath | None
    """null: the folder `shards` in the work folder. The processes of a machine share it; you may delete it between runs."""
    gb: float = Field(gt=0)
    """Most that it holds, in GB, beside the shards that are read at this moment. Training needs two windows of `train.order`,
    since there are batches in which two windows meet."""

    @property
    def path(self) -> Path:
        """The folder."""
        return in_checkout(self.folder) if self.folder else work_root() / "shards"

    @property
    def most_bytes(self) -> int:
        """Most that it holds, in bytes."""
        return int(self.gb * 1e9)


class Remote(Storage):
    """Shards at a URL. A shard that is in the folder of its set is taken from there.

    A copy is used only if its hash is right.

    Args:
        bucket: the folder at the URL.
        cache: where the copies are, and how much of them.
        verify: whether to check the hash of copies that earlier runs have left.
    """

    def __init__(self, bucket: Bucket, cache: ShardCache, *, verify: bool) -> None:
        self._bucket, self._most_bytes, self._verify = bucket, cache.most_bytes, verify
        self.most_bytes, self._cache, self._own = cache.most_bytes, cache.path, Folders()
        self._files: dict[Path, File] = {}
        """The shards of the store, by the paths of their copies."""
        self._used: OrderedDict[Path, Copy] = OrderedDict()
        """The copies in use, the least recently used first."""
        self._verified: set[Path] = set()
        self._needed: set[Path] = set()
        self._arriving: dict[Path, Future[Copy]] = {}
        """The shards that are fetched."""
        self._waiting: deque[Path] = deque()
        """Those of them that no thread fetches yet."""
        self._wanted: Counter[Path] = Counter()
        """The shards that threads wait for."""
        self._threads, self._closed = 0, False
        self._lock, self._room = threading.RLock(), threading.Lock()

    def sizes(self, folder: Path, files: Collection[File]) -> dict[str, int]:
        """Returns the sizes of the files that there are of a set, in its folder or in the store, by name."""
        found = self._own.sizes(folder)
        absent = [file for file in files if file.is_shard and file.name not in found]
        stored = {file.name: self._bucket.size(_name(file)) for file in absent}
        return found | {name: size for name, size in stored.items() if size is not None}

    def elsewhere(self, file: File) -> bool:
        """Returns whether a shard is in the store, with its size."""
        return file.is_shard and self._bucket.size(_name(file)) == file.bytes

    def path(self, folder: Path, file: File) -> Path:
        """Returns the path of a file of a set, where `content` finds it: in its folder, or in the cache."""
        own = folder / file.name
        if not file.is_shard or own.exists():
            return own
        copy = self._cache / file.sha256 / file.name
        self._files[copy] = file
        return copy

    def content(self, path: Path) -> np.ndarray:
        """Returns the bytes of a file, mapped; fetches a shard if it is not here, before those that are only needed.

        Raises:
            OSError, ValueError: as `Storage.content`, if it is no shard of the store.
            StoreLost: if the store cannot be reached, or has no such shard.
        """
        if path not in self._files:
            return self._own.content(path)
        with self._lock:
            if path in self._used:
                self._used.move_to_end(path)
                return self._used[path].content
            self._wanted[path] += 1
            arriving = self._fetch(path)
        try:
            while not wait([arriving], timeout=0.5).done:
                if threading.current_thread() is threading.main_thread():
                    self.while_waiting()
            return arriving.result().content
        finally:
            with self._lock:
                self._wanted -= Counter([path])

    def check_room(self, size: int) -> None:
        """Raises a ValueError if shards of this size in bytes cannot be on this disk together."""
        if size > self._most_bytes:
            raise ValueError(
                f"shards that are needed together have {in_bytes(size)}, but `runtime.shard_cache.gb` is "
                f"{self._most_bytes / 1e9:g}: increase it, or let `train.order` have windows of fewer shards"
            )

    def need(self, paths: Collection[Path]) -> None:
        """Says which shards are needed now and next: they are fetched in this order, and stay until this is said of others."""
        own = [path for path in paths if path in self._files]
        with self._lock:
            for path in [path for path in self._waiting if not self._wanted[path]]:
                self._forget(path)
            self._needed = set(own)
            for path in own:
                if path not in self._used:
                    self._fetch(path)

    def put(self, path: Path, file: File) -> None:
        """Moves a finished shard from `path` to the store."""
        if file.is_shard:
            self._bucket.put(path, _name(file))
            path.unlink()

    def close(self) -> None:
        """Ends all waiting: whoever waits for a shard gets a StoreLost."""
        self._bucket.close()
        with self._lock:
            self._closed = True
            for path in list(self._waiting):
                self._forget(path)

    def _forget(self, path: Path) -> None:
        """Takes back that a shard should be fetched; the lock is held."""
        self._waiting.remove(path)
        self._arriving.pop(path).set_exception(StoreLost("the shard is not needed any more"))

    def _fetch(self, path: Path) -> "Future[Copy]":
        """Returns a shard that will come, as soon as possible if a thread waits for it; the lock is held."""
        if self._closed:
            raise StoreLost("the command is ending")
        if path not in self._arriving:
            self._arriving[path] = Future()
            self._waiting.append(path)
            if self._threads < _THREADS:
                self._threads += 1
                threading.Thread(target=self._work, daemon=True, name="fetch shards").start()
        if self._wanted[path] and path in self._waiting:
            self._waiting.remove(path)
            self._waiting.appendleft(path)
        return self._arriving[path]

    def _work(self) -> None:
        """Fetches shards until none is wanted, or the process ends, which may be at any moment."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                path = self._waiting.popleft()
            try:
                copy = self._bring(path, self._files[path])
            except Exception as error:
                with self._lock:
                    self._arriving.pop(path).set_exception(error)
                    for other in [other for other in self._waiting if not self._wanted[other]]:
                        self._forget(other)
            else:
                with self._lock:
                    self._keep(path, copy)
                    self._arriving.pop(path).set_result(copy)

    def _keep(self, path: Path, copy: Copy) -> None:
        self._used[path] = copy
        self._verified.add(path)
        while len(self._used) > _MOST_USED:
            self._used.popitem(last=False)[1].file.close()

    def _bring(self, path: Path, file: File) -> Copy:
        """Returns a copy of a shard; fetches it if there is none."""
        while (copy := use(path, file, verify=self._verify and path not in self._verified)) is None:
            with unfinished(path) as partial:
                if not path.exists():  # else another process has just fetched it
                    self._make_room(path)
                    if not self._download(file, partial) and not self._download(file, partial):
                        raise StoreLost(
                            f"{self._bucket.url}/{_name(file)}: its content has another hash than its name: it was changed "
                            f"there; remove it, and run the stage that writes {file.name} again"
                        )
                    partial.replace(path)
                    self._verified.add(path)
        return copy

    def _download(self, file: File, to: Path) -> bool:
        """Writes a shard from the store to this disk; returns whether its hash is right."""
        hashed = sha256()
        with to.open("wb") as partial:
            for block in self._bucket.blocks(_name(file), file.bytes):
                hashed.update(block)
                partial.write(block)
        return hashed.hexdigest() == file.sha256

    def _make_room(self, arriving: Path) -> None:
        """Removes copies that nobody needs, the least recently used first, until there is room for all that arrive."""
        with self._room:
            there = listed(self._cache)
            with self._lock:
                coming = {arriving, *self._arriving} - there.keys()
                total = sum(self._files[path].bytes for path in coming) + sum(found.st_size for found in there.values())
                used = [path for path in self._used if path in there]
            for path in [*sorted(there.keys() - set(used), key=lambda path: there[path].st_mtime), *used]:
                if total <= self._most_bytes:
                    return
                with self._lock:
                    if path in self._needed or path in self._arriving:
                        continue
                    if (copy := self._used.pop(path, None)) is not None:
                        copy.file.close()
                total -= there[path].st_size if remove(path) else 0


def _name(file: File) -> str:
    return f"{file.sha256}.tar"
