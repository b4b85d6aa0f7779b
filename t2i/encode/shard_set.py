"""A set of shards in the making: what is finished survives a kill, and the set takes its final name whole.

data/work/encode-images-HASH/train-00000.tar    and train-00000.tar.json, its row for the manifest, once it is whole
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
    """The files of a set that are there so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "files"
        self.folder.mkdir(exist_ok=True)
        self.rows: list[File] = []
        self._finished = folder

    def add(self, name: str, members: Callable[[], Mapping[str, tuple[str, bytes]]]) -> bool:
        """Writes a shard of what `members` returns, and returns True; does neither where it is there from before a kill."""
        return self._add(name, lambda: write_shard(self.folder / name, members()))

    def add_file(self, name: str, content: Callable[[], bytes]) -> bool:
        """The same for a file that is no shard, of one record."""

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
        """The row of a file that is there as its row says, or None."""
        if not (path.exists() and file.exists()):
            return None
        with contextlib.suppress(ValidationError):
            row = File.model_validate_json(path.read_text(encoding="utf-8"))
            if row.bytes == file.stat().st_size:
                return row
        return None


@contextmanager
def shard_set(kind: str, made_by: dict[str, Any], code: Iterable[str], out: Path) -> Iterator[ShardSet]:
    """Yields the set of a piece of work, as far as it is made; publishes it as `out` on success.

    Args:
        kind: the piece of work's name, such as `encode-images`.
        made_by: everything but code that decides its content.
        code: paths below t2i/ of the code that decides it; both together find what a killed run left.
        out: the final folder.

    Raises:
        ValueError: where another process is at the same work.
    """
    work = work_folder(kind, fingerprint(made_by, code_digest(code)))
    with locked(work):
        made = ShardSet(work)
        yield made
        write_manifest(made.folder, made.rows, made_by)
        read_manifest(made.folder)
        publish(made.folder, out)
        shutil.rmtree(work)
