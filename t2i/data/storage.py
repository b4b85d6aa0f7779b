"""Storage: where the shards of the sets are."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from t2i.core.params import Section

MANIFEST = "manifest.json"


class File(Section):
    """One file of a set."""

    name: str
    count: int
    """Number of records in the file."""
    bytes: int
    sha256: str

    @property
    def is_shard(self) -> bool:
        """Whether the file is a shard, and not an index or another small file."""
        return self.name.endswith(".tar")


class Storage:
    """Shards in the folders of their sets. Maps each file once."""

    most_bytes: int | None = None
    """How much of the sets is on this disk at once; None: all of them."""

    def __init__(self) -> None:
        self._maps: dict[Path, np.ndarray] = {}

    def sizes(self, folder: Path, files: Collection[File]) -> dict[str, int]:
        """Returns the sizes of the files that there are of a set, by name.

        Args:
            folder: the folder of the set.
            files: its files, as its manifest has them.
        """
        del files
        return {file.name: file.stat().st_size for file in folder.iterdir() if file.name != MANIFEST and file.name[0] != "."}

    def elsewhere(self, file: File) -> bool:
        """Returns whether a shard is kept where its folder is not."""
        del file
        return False

    def path(self, folder: Path, file: File) -> Path:
        """Returns the path of a file of a set, where `content` finds it."""
        return folder / file.name

    def content(self, path: Path) -> np.ndarray:
        """Returns the bytes of a file, mapped: they stay valid whatever becomes of the file.

        Raises:
            OSError: if it is not there.
            ValueError: if it is empty.
        """
        if path not in self._maps:
            self._maps[path] = mapped(path)
        return self._maps[path]

    def check_room(self, size: int) -> None:
        """Raises a ValueError if shards of this size in bytes cannot be on this disk together."""

    def need(self, paths: Collection[Path]) -> None:
        """Says which shards are needed now and next, in order: these stay on this disk, until this is said of others."""

    def put(self, path: Path, file: File) -> None:
        """Takes a finished shard, which was written at `path`."""


def mapped(path: Path) -> np.ndarray:
    """Returns the bytes of a file, mapped copy-on-write; unlike `mmap`, torch keeps no file descriptor for it.

    Raises:
        OSError: if it is not there.
        ValueError: if it is empty.
    """
    import torch  # not for processes that only decode, or read parameters

    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path}: an empty file")
    content: np.ndarray = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    return content
