"""A set of shards under construction: finished records survive a kill; the complete set is renamed to its final folder.

data/work/encode-images-HASH/files/train-00000.{tar,npy}    a shard and its index
data/work/encode-images-HASH/                               the store of finished records
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2i.core.files import publish, whole, work_folder
from t2i.core.locks import locked
from t2i.data.digests import code_digest, fingerprint
from t2i.data.manifest import File, describe, read_manifest, write_manifest
from t2i.data.shards import write_shard
from t2i.encode.store import COMPLETE, Found, Store


class ShardSet:
    """The files of a set that exist so far. Shards are written by a thread, one at a time, while the next one is computed."""

    def __init__(self, store: Store) -> None:
        self.folder = store.folder / "files"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.rows: list[File] = []
        self._store = store
        self._thread = ThreadPoolExecutor(1, "write shards")
        self._writing: Future[None] | None = None

    def find(self, identities: Mapping[str, str]) -> Found:
        """Returns what is already there of a shard, from the identities of its records by key."""
        return self._store.find(identities)

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

    def close(self) -> None:
        """Waits for the thread, and ignores its errors."""
        self._thread.shutdown()

    def add_file(self, name: str, content: bytes) -> None:
        """Writes a single file that is not a shard; it counts as one record."""
        with whole(self.folder / name, len(content)) as partial:
            partial.write_bytes(content)
        self.rows.append(describe(self.folder / name, 1))

    def _write(self, path: Path, found: Found, made: Callable[[], Mapping[str, bytes]]) -> None:
        if found.digest:
            self.rows += self._store.give(found.digest, path)
            return
        contents = {key: self._store.content(place) for key, place in found.stored.items()}
        contents.update(made())
        rows = write_shard(path, {key: ("safetensors", content) for key, content in contents.items()})
        self._store.keep(found, path, rows, contents)
        self.rows += rows


@contextmanager
def shard_set(
    kind: str, made_by: dict[str, Any], records_by: dict[str, Any], code: Iterable[str], out: Path
) -> Iterator[ShardSet]:
    """Yields an empty set, which is renamed to `out` on success; its records then stay in the store for the next set.

    Args:
        kind: the name of the work, such as `encode-images`.
        made_by: everything except code that decides the set.
        records_by: what decides a record, except code and the record's identity. With `code`, it identifies the store.
        code: paths below t2i/ of the code that decides the content.
        out: the final folder.

    Raises:
        ValueError: another process is doing the same work.
    """
    work = work_folder(kind, fingerprint(records_by, code_digest(code)))
    with locked(work):
        (work / COMPLETE).unlink(missing_ok=True)
        store = Store(work)
        with contextlib.closing(ShardSet(store)) as made:
            yield made
            made.wait()
        write_manifest(made.folder, made.rows, made_by)
        read_manifest(made.folder)
        publish(made.folder, out)
        store.prune()
    for other in work.parent.glob(f"{kind}-*"):
        if other != work:
            with contextlib.suppress(ValueError), locked(other):  # not one that another process works in
                shutil.rmtree(other, ignore_errors=True)
