"""A set of shards under construction: finished shards survive a kill; the complete set is renamed to its final folder.

data/work/encode-images-HASH/files/train-00000.{tar,npy}    a shard and its index
data/work/encode-images-HASH/train-00000.tar.json           their rows of the manifest, written when both are complete
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from t2i.core.files import publish, whole, work_folder, write_text
from t2i.core.locks import locked
from t2i.data.digests import code_digest, fingerprint
from t2i.data.manifest import File, describe, read_manifest, write_manifest
from t2i.data.shards import write_shard

_ROWS = TypeAdapter(list[File])


class ShardSet:
    """The files of a set that exist so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "files"
        self.folder.mkdir(exist_ok=True)
        self.rows: list[File] = []
        self._finished = folder

    def add(self, name: str, members: Callable[[], Mapping[str, tuple[str, bytes]]]) -> bool:
        """Writes what `members` returns as a shard; returns False, without calling it, if an earlier run finished the shard."""
        return self._add(name, lambda: write_shard(self.folder / name, members()))

    def add_file(self, name: str, content: Callable[[], bytes]) -> bool:
        """Does the same for a single file that is not a shard; it counts as one record."""

        def write() -> list[File]:
            made = content()
            with whole(self.folder / name, len(made)) as partial:
                partial.write_bytes(made)
            return [describe(self.folder / name, 1)]

        return self._add(name, write)

    def _add(self, name: str, write: Callable[[], list[File]]) -> bool:
        path = self._finished / f"{name}.json"
        found = self._finished_rows(path)
        rows = found or write()
        if not found:
            write_text(path, _ROWS.dump_json(rows).decode())
        self.rows += rows
        return not found

    def _finished_rows(self, path: Path) -> list[File]:
        """Returns the rows that a file holds; none if it or one of their files is missing, or a size differs."""
        with contextlib.suppress(OSError, ValidationError):
            rows = _ROWS.validate_json(path.read_bytes())
            if all((self.folder / row.name).stat().st_size == row.bytes for row in rows):
                return rows
        return []


@contextmanager
def shard_set(kind: str, made_by: dict[str, Any], code: Iterable[str], out: Path) -> Iterator[ShardSet]:
    """Yields a shard set with the files that a killed run finished; renames it to `out` on success.

    Args:
        kind: the name of the work, such as `encode-images`.
        made_by: everything except code that decides the content.
        code: paths below t2i/ of the code that decides the content. `made_by` and `code` identify the work folder.
        out: the final folder.

    Raises:
        ValueError: another process is doing the same work.
    """
    work = work_folder(kind, fingerprint(made_by, code_digest(code)))
    with locked(work):
        made = ShardSet(work)
        yield made
        write_manifest(made.folder, made.rows, made_by)
        read_manifest(made.folder)
        publish(made.folder, out)
        shutil.rmtree(work)
