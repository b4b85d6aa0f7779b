"""Storage: where the shards of the sets are."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
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


class Storage(ABC):
    """Where the shards of sets are. Manifests, indices and other small files are always in the folders of their sets."""

    most_bytes: int | None = None
    """How much of the sets is on this disk at once; None: all of them."""

    while_waiting: Callable[[], None] = staticmethod(lambda: None)
    """Called twice a second while the main thread waits for a shard; may raise."""

    @abstractmethod
    def sizes(self, folder: Path, files: Collection[File]) -> dict[str, int]:
        """Returns the sizes of the files that there are of a set, by name.

        Args:
            folder: the folder of the set.
            files: its files, as its manifest has them.
        """

    @abstractmethod
    def elsewhere(self, file: File) -> bool:
        """Returns whether a shard is kept where its folder is not."""

    @abstractmethod
    def path(self, folder: Path, file: File) -> Path:
        """Returns the path of a file of a set, where `content` finds it."""

    @abstractmethod
    def content(self, path: Path) -> np.ndarray:
        """Returns the bytes of a file, mapped: they stay valid whatever becomes of the file.

        Raises:
            OSError: if it is not there.
            ValueError: if it is empty.
        """

    @abstractmethod
    def check_room(self, size: int) -> None:
        """Raises a ValueError if shards of this size in bytes cannot be on this disk together."""

    @abstractmethod
    def need(self, paths: Collection[Path]) -> None:
        """Says which shards are needed now and next, in order: these stay on this disk, until this is said of others."""

    @abstractmethod
    def put(self, path: Path, file: File) -> None:
        """Takes a finished file, which was written at `path`."""

    @abstractmethod
    def close(self) -> None:
        """Ends all waiting: whoever waits for a shard gets an error."""


class Folders(Storage):
    """Shards in the folders of their sets. Maps each file once."""

    def __init__(self) -> None:
        self._maps: dict[Path, np.ndarray] = {}

    def sizes(self, folder: Path, files: Collection[File] = ()) -> dict[str, int]:
        """Returns the sizes of the files in a folder, by name."""
        del files
        return {file.name: file.stat().st_size for file in folder.iterdir() if file.name != MANIFEST and file.name[0] != "."}

    def elsewhere(self, file: File) -> bool:
        """Returns False."""
        del file
        return False

    def path(self, folder: Path, file: File) -> Path:
        """Returns the path of a file."""
        return folder / file.name

    def content(self, path: Path) -> np.ndarray:
        """Returns the bytes of a file, mapped. Raises as `Storage.content`."""
        if path not in self._maps:
            self._maps[path] = mapped(path)
        return self._maps[path]

    def check_room(self, size: int) -> None:
        """Passes: all shards are on this disk."""

    def need(self, paths: Collection[Path]) -> None:
        """Does nothing."""

    def put(self, path: Path, file: File) -> None:
        """Leaves the file where it is."""

    def close(self) -> None:
        """Does nothing."""


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
