"""A set of shards in the making: what is finished survives a kill, and the set takes its final name whole.

data/work/encode-images-HASH/train-00000.tar    and train-00000.tar.json, its row for the manifest, once it is whole
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2i.manifest import File, describe, read_manifest, write_manifest
from t2i.shards import write_shard
from t2i.work import fingerprint, locked, publish, source_digest, whole, work_folder, write_text


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
        row = self._finished / f"{name}.json"
        found = row.exists() and (self.folder / name).exists()
        if not found:
            write_text(row, write().model_dump_json())
        self.rows.append(File.model_validate_json(row.read_text(encoding="utf-8")))
        return not found


@contextmanager
def shard_set(kind: str, made_by: dict[str, Any], out: Path) -> Iterator[ShardSet]:
    """Gives the set of a piece of work, as far as it is made; publishes it as `out` when the block ends well.

    Args:
        kind: the piece of work's name, such as `encode-images`.
        made_by: all that decides its content; with this package's source, it finds what a killed run left.
        out: the final folder.

    Raises:
        ValueError: where another process is at the same work, or a file is not as it was left.
    """
    work = work_folder(kind, fingerprint(made_by, source_digest()))
    with locked(work):
        made = ShardSet(work)
        yield made
        write_manifest(made.folder, made.rows, made_by)
        read_manifest(made.folder)
        publish(made.folder, out)
        shutil.rmtree(work)
