"""A set of shards under construction: finished shards survive a kill; the complete set is renamed to its final folder.

data/work/encode-images-HASH/files/train-00000.tar    a shard
data/work/encode-images-HASH/train-00000.tar.json     its row of the manifest, written when the shard is complete
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from t2i.core.files import publish, whole, work_folder, write_text
from t2i.core.locks import locked
from t2i.data.digests import code_digest, fingerprint
from t2i.data.manifest import File, describe, read_manifest, write_manifest
from t2i.data.shards import write_shard


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

        def write() -> File:
            made = content()
            with whole(self.folder / name, len(made)) as partial:
                partial.write_bytes(made)
            return describe(self.folder / name, 1)

        return self._add(name, write)

    def _add(self, name: str, write: Callable[[], File]) -> bool:
        path = self._finished / f"{name}.json"
        found = self._row(path, self.folder / name)
        row = found or write()
        if not found:
            write_text(path, row.model_dump_json())
        self.rows.append(row)
        return not found

    @staticmethod
    def _row(path: Path, file: Path) -> File | None:
        """Returns the row of a file, or None if the file or the row is missing or their sizes differ."""
        if not (path.exists() and file.exists()):
            return None
        with contextlib.suppress(ValidationError):
            row = File.model_validate_json(path.read_text(encoding="utf-8"))
            if row.bytes == file.stat().st_size:
                return row
        return None


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
