"""A set of shards under construction: finished records survive a kill; the complete set is renamed to its final folder.

data/work/encode-images-HASH/files/train-00000.{tar,npy}              a shard and its index
data/work/encode-images-HASH/part-HOST-PROCESS/train-00000.{tar,npy}  those of a process that encodes a part of the set
data/work/encode-images-HASH/locks/train-00000.tar/                   the lock of the process that works on this shard
data/work/encode-images-HASH/                                         the store of finished records
"""

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2i.core.files import publish, whole, work_folder
from t2i.core.locks import locked
from t2i.data.digests import code_digest, fingerprint
from t2i.data.manifest import describe, read_manifest, write_manifest
from t2i.data.shards import write_shard
from t2i.data.storage import File, Storage
from t2i.encode.store import COMPLETE, Found, Store


class ShardSet:
    """The files of a set that exist so far. Shards are written by a thread, one at a time, while the next one is computed.

    If the shards belong elsewhere, each of them is moved there.

    Args:
        store: where finished records stay.
        files: the folder of the shards; what was there before is removed.
        finished: whether to refuse shards with records that the store does not have.
    """

    def __init__(self, store: Store, files: Path, *, finished: bool = False) -> None:
        self.store, self.folder, self._finished = store, files, finished
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir()
        self.rows: list[File] = []
        self.new = 0
        """Number of records that were not in the store."""
        self._locks = dict[str, contextlib.ExitStack]()
        self._thread = ThreadPoolExecutor(1, "write shards")
        self._writing: Future[None] | None = None

    def find(self, name: str, identities: Mapping[str, str]) -> Found:
        """Takes the lock of a shard until it is on disk, and returns what is already there of it.

        Args:
            name: the name of the shard.
            identities: the identity of each of its records, by key.

        Raises:
            ValueError: if another process works on the shard, or not all of it is there and `finished` is set.
        """
        lock = self.store.folder / "locks" / name
        lock.mkdir(parents=True, exist_ok=True)
        self._locks[name] = contextlib.ExitStack()
        self._locks[name].enter_context(locked(lock))
        found = self.store.find(identities)
        if self._finished and found.missing:
            raise ValueError(
                f"{name}: {len(found.missing)} of {len(identities)} records are not encoded yet: run the parts that were not "
                "finished again, or leave out --finish"
            )
        if not found.missing:
            self._locks[name].close()  # a set can have very many of these
        self.new += len(found.missing)
        return found

    def add(self, name: str, found: Found, made: Callable[[], Mapping[str, bytes]]) -> None:
        """Starts to write a shard, after the one before it is on disk.

        Args:
            name: the name of the shard.
            found: what is already there of it.
            made: returns the safetensors content of each missing record, by key; called in the thread.

        Raises:
            ValueError: if the shard before could not be made or written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, self.folder / name, found, made)

    def wait(self) -> None:
        """Waits until all shards are on disk; raises the error of the last one."""
        if self._writing is not None:
            self._writing.result()

    def shards(self) -> dict[str, Path]:
        """Returns the paths of the finished shards by name."""
        return {row.name: self.store.storage.path(self.folder, row) for row in self.rows if row.is_shard}

    def close(self) -> None:
        """Waits for the thread, ignores its errors, and releases all locks."""
        self._thread.shutdown()
        for lock in self._locks.values():
            lock.close()

    def add_file(self, name: str, content: bytes) -> None:
        """Writes a single file that is not a shard; it counts as one record."""
        with whole(self.folder / name, len(content)) as partial:
            partial.write_bytes(content)
        self.rows.append(describe(self.folder / name, 1))

    def _write(self, path: Path, found: Found, made: Callable[[], Mapping[str, bytes]]) -> None:
        with self._locks[path.name]:
            if found.digest:
                self.rows += self.store.give(found.digest, path)
                return
            contents = {key: self.store.content(place) for key, place in found.stored.items()}
            contents.update(made())
            rows = write_shard(path, {key: ("safetensors", content) for key, content in contents.items()})
            self.store.keep(found, path, rows, contents)
            self.rows += rows


@contextmanager
def whole_set(work: Path, made_by: Mapping[str, Any], out: Path, storage: Storage, *, finished: bool) -> Iterator[ShardSet]:
    """Yields an empty set, which is renamed to `out` on success; its records then stay in the store for the next set.

    Args:
        work: the folder of the store, from `store_folder`. The stores of other settings beside it are removed on success.
        made_by: everything except code that decides the set.
        out: the final folder.
        storage: where the shards are.
        finished: whether to refuse shards with records that the store does not have.

    Raises:
        ValueError: another process is doing the same work, or a part of it.
    """
    with locked(work):
        (work / COMPLETE).unlink(missing_ok=True)
        _tidy(work)
        with contextlib.closing(ShardSet(Store(work, storage), work / "files", finished=finished)) as made:
            yield made
            made.wait()
        write_manifest(made.folder, made.rows, dict(made_by))
        read_manifest(made.folder, storage)
        publish(made.folder, out)
        made.store.prune()
        _tidy(work)
    kind, _, _ = work.name.rpartition("-")
    for other in work.parent.glob(f"{kind}-*"):
        if other != work:
            with contextlib.suppress(ValueError), locked(other):  # not one that another process works in
                shutil.rmtree(other, ignore_errors=True)


@contextmanager
def part_of_set(work: Path, storage: Storage) -> Iterator[ShardSet]:
    """Yields an empty set whose records go to the store only, for a process that encodes some of the shards.

    Args:
        work: the folder of the store.
        storage: where the shards are.

    Raises:
        ValueError: another process is making the whole set.
    """
    with locked(work, shared=True):
        (work / COMPLETE).unlink(missing_ok=True)
        with own_files(Store(work, storage)) as made:
            yield made


@contextmanager
def own_files(store: Store) -> Iterator[ShardSet]:
    """Yields an empty set of this process, whose files are removed at the end."""
    files = store.folder / f"part-{platform.node()}-{os.getpid()}"
    try:
        with contextlib.closing(ShardSet(store, files)) as made:
            yield made
            made.wait()
    finally:
        shutil.rmtree(files, ignore_errors=True)


def store_folder(kind: str, records_by: Mapping[str, Any], code: Iterable[str]) -> Path:
    """Returns the folder of a store.

    Args:
        kind: the name of the work, such as `encode-images`.
        records_by: what decides a record, except code and the record's identity.
        code: paths below t2i/ of the code that decides the content.
    """
    return work_folder(kind, fingerprint(dict(records_by), code_digest(code)))


def _tidy(work: Path) -> None:
    """Removes what the processes of parts have left."""
    for folder in [work / "locks", *work.glob("part-*")]:
        shutil.rmtree(folder, ignore_errors=True)
