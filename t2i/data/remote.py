"""Remote: the shards of all sets at one URL, and a cache of them on this disk. Manifests and indices stay in the sets' folders.

URL/SHA256.tar    a shard, by the hash of its content
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Collection
from concurrent.futures import Future
from hashlib import sha256
from pathlib import Path

import numpy as np
from pydantic import Field

from t2i.core.files import in_bytes, work_root
from t2i.core.params import LocalPath, Section
from t2i.data.bucket import Bucket, StoreLost
from t2i.data.copies import Copy, remove, unfinished, use
from t2i.data.storage import File, Storage

_THREADS = 4
"""How many shards are fetched at once."""


class ShardCache(Section):
    """Section `runtime.shard_cache`: the copies on this disk of shards that are in use, if `runtime.store` has them."""

    folder: LocalPath | None
    """null: the folder `shards` in the work folder. The processes of a machine share it; you may delete it between runs."""
    gb: float = Field(gt=0)
    """Most that it holds, in GB. Training needs one window of `train.order`; with two, it does not wait for the store."""

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder) if self.folder else work_root() / "shards"

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
        super().__init__()
        self._bucket, self.most_bytes, self._verify = bucket, cache.most_bytes, verify
        self._cache = cache.path
        self._files: dict[Path, File] = {}
        """The shards of the store, by the paths of their copies."""
        self._used: OrderedDict[Path, Copy] = OrderedDict()
        """The copies in use, the least recently used first."""
        self._needed: set[Path] = set()
        self._arriving: dict[Path, Future[Copy]] = {}
        """The shards that are fetched."""
        self._lock, self._room = threading.RLock(), threading.Lock()
        self._waiting: deque[Path] = deque()
        """Those of them that no thread fetches yet."""
        self._threads = 0

    def sizes(self, folder: Path, files: Collection[File]) -> dict[str, int]:
        """Returns the sizes of the files that there are of a set, in its folder or in the store, by name."""
        found, stored = super().sizes(folder, files), self._bucket.sizes()
        absent = [file for file in files if file.is_shard and file.name not in found]
        if not all(map(self.elsewhere, absent)):
            stored = self._bucket.sizes(again=True)
        return found | {file.name: stored[_name(file)] for file in absent if _name(file) in stored}

    def elsewhere(self, file: File) -> bool:
        """Returns whether a shard is in the store, with its size."""
        return file.is_shard and self._bucket.sizes().get(_name(file)) == file.bytes

    def path(self, folder: Path, file: File) -> Path:
        """Returns the path of a file of a set, where `content` finds it: in its folder, or in the cache.

        Raises:
            ValueError: if the cache is too small for it.
        """
        own = folder / file.name
        if not file.is_shard or own.exists():
            return own
        self.check_room(file.bytes)
        copy = self._cache / file.sha256 / file.name
        self._files[copy] = file
        return copy

    def content(self, path: Path) -> np.ndarray:
        """Returns the bytes of a file, mapped; fetches a shard if it is not here.

        Raises:
            OSError, ValueError: as `Storage.content`, if it is no shard of the store.
            StoreLost: if the store cannot be reached, or has no such shard.
        """
        if path not in self._files:
            return super().content(path)
        with self._lock:
            if path in self._used:
                self._used.move_to_end(path)
                return self._used[path].content
            arriving = self._fetch(path)
        return arriving.result().content

    def check_room(self, size: int) -> None:
        """Raises a ValueError if shards of this size in bytes cannot be on this disk together."""
        if self.most_bytes is not None and size > self.most_bytes:
            raise ValueError(
                f"shards that are needed together have {in_bytes(size)}, but `runtime.shard_cache.gb` is "
                f"{self.most_bytes / 1e9:g}: increase it, or let `train.order` have windows of fewer shards"
            )

    def need(self, paths: Collection[Path]) -> None:
        """Says which shards are needed now and next: they are fetched in this order, and stay until this is said of others.

        Raises:
            ValueError: if the cache is too small for them.
        """
        own = [path for path in paths if path in self._files]
        self.check_room(sum(self._files[path].bytes for path in own))
        with self._lock:
            self._needed = set(own)
            for path in own:
                if path not in self._used:
                    self._fetch(path)

    def put(self, path: Path, file: File) -> None:
        """Moves a finished shard from `path` to the store."""
        if file.is_shard:
            self._bucket.put(path, _name(file))
            path.unlink()

    def _fetch(self, path: Path) -> "Future[Copy]":
        """Returns a shard that will come; called with the lock held."""
        if path not in self._arriving:
            self._arriving[path] = Future()
            self._waiting.append(path)
            if self._threads < _THREADS:
                self._threads += 1
                threading.Thread(target=self._work, daemon=True, name="fetch shards").start()
        return self._arriving[path]

    def _work(self) -> None:
        """Fetches shards until none is wanted, or the process ends, which may be at any moment."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                path = self._waiting.popleft()
                arriving = self._arriving[path]
            try:
                copy = self._bring(path, self._files[path])
            except Exception as error:
                with self._lock:
                    del self._arriving[path]
                arriving.set_exception(error)
            else:
                with self._lock:
                    self._used[path] = copy
                    del self._arriving[path]
                arriving.set_result(copy)

    def _bring(self, path: Path, file: File) -> Copy:
        """Returns a copy of a shard; fetches it if there is none."""
        verify = self._verify
        while (copy := use(path, file, verify=verify)) is None:
            with unfinished(path) as partial:
                if not path.exists():  # else another process has just fetched it
                    self._make_room(path)
                    self._download(file, partial)
                    partial.replace(path)
                    verify = False
        return copy

    def _download(self, file: File, to: Path) -> None:
        hashed = sha256()
        with to.open("wb") as partial:
            for block in self._bucket.blocks(_name(file), file.bytes):
                hashed.update(block)
                partial.write(block)
        if hashed.hexdigest() != file.sha256:
            raise StoreLost(
                f"{self._bucket.url}/{_name(file)}: its sha256 is {hashed.hexdigest()[:16]}: it was changed there; remove it, "
                f"and run the stage that writes {file.name} again"
            )

    def _make_room(self, arriving: Path) -> None:
        """Removes copies that nobody needs, the least recently used first, until there is room for all that arrive."""
        with self._room:
            for left in self._cache.glob("*/*.partial"):
                remove(left)
            there = {path: path.stat() for path in self._cache.glob("*/*.tar")}
            with self._lock:
                coming = {arriving, *self._arriving} - there.keys()
                total = sum(self._files[path].bytes for path in coming) + sum(found.st_size for found in there.values())
                used = [path for path in self._used if path in there]
            for path in [*sorted(there.keys() - set(used), key=lambda path: there[path].st_mtime), *used]:
                if self.most_bytes is None or total <= self.most_bytes:
                    return
                with self._lock:
                    if path in self._needed or path in self._arriving:
                        continue
                    if (copy := self._used.pop(path, None)) is not None:
                        copy.file.close()
                total -= there[path].st_size if remove(path) else 0


def _name(file: File) -> str:
    return f"{file.sha256}.tar"
