"""Index: where each record lies in the shards of a set. One file per shard, mapped, so that no start reads every tar header.

A shard train-00000.tar has its index in train-00000.npy, a NumPy array with one row per record, sorted by key: key, extension,
and the position and size of the content in bytes. The manifest states both files. The index of a set that was made without one
is written to the work folder when the set is first read.
"""

import bisect
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import overload
from uuid import uuid4

import numpy as np

from t2i.core.files import whole, work_root
from t2i.data.manifest import check_hash, describe, read_manifest
from t2i.data.members import AGAIN, Member, scan
from t2i.data.records import split_of_shard
from t2i.data.storage import File, Folders, Storage, mapped

_COLUMNS = [("key", "S"), ("extension", "S"), ("offset", "i"), ("size", "i")]
"""Names and kinds of the columns."""


class Index(Sequence[Member]):
    """The records of a split of a set, in the order of its shards. Reads the index of a shard when one of its records is used.

    Args:
        folder: the set.
        split: `train` or `heldout`.
        extensions: file extensions that its records may have.
        storage: where its shards are; None: in the folder.

    Raises:
        ValueError: if the set is not complete. Methods: if an index or a shard is damaged, or a record has another extension.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        extensions: Collection[str] = ("safetensors",),
        storage: Storage | None = None,
    ) -> None:
        self.folder = folder
        self._extensions, self._storage = extensions, storage or Folders()
        self.files = read_manifest(folder, self._storage).files
        """The files of the whole set."""
        files = {file.name: file for file in self.files}
        self._shards = [file for name, file in sorted(files.items()) if split_of_shard(name) == split]
        self._indexed = {file.name for file in self._shards if index_name(file.name) in files}
        self._paths = [self._storage.path(folder, file) for file in self._shards]
        self.sizes = [file.count for file in self._shards]
        """The number of records in each shard."""
        self._ends = list(accumulate(self.sizes))
        self._rows: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def shards(self) -> dict[str, range]:
        """Returns the places of the records of each shard, by the name of the shard."""
        starts = [0, *self._ends]
        return {file.name: range(start, end) for file, (start, end) in zip(self._shards, pairwise(starts), strict=True)}

    def places_in(self, shard: int) -> range:
        """Returns the places of the records of a shard, by its number."""
        return range(self._ends[shard] - self.sizes[shard], self._ends[shard])

    def elsewhere(self, places: range) -> dict[Path, int]:
        """Returns the paths and sizes in bytes of the shards with the records at some places, except those in the folder."""
        first, last = bisect.bisect_right(self._ends, places.start), bisect.bisect_left(self._ends, places.stop)
        shards = ((self._paths[shard], self._shards[shard]) for shard in range(first, last + 1))
        return {path: file.bytes for path, file in shards if path.parent != self.folder}

    @overload
    def __getitem__(self, place: int) -> Member: ...
    @overload
    def __getitem__(self, place: slice) -> list[Member]: ...
    def __getitem__(self, place: int | slice) -> Member | list[Member]:
        """Returns the record at a place."""
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        shard = bisect.bisect_right(self._ends, place)
        if place < 0 or shard == len(self._ends):
            raise IndexError(place)
        return self._member(shard, place - self._ends[shard])  # counted from the end of the shard

    def find(self, key: str, near: int = 0) -> Member:
        """Returns the record with a key; quickest if its place is `near`. Raises as `place`."""
        if near < len(self) and (there := self[near]).key == key:
            return there
        return self[self.place(key, near)]

    def place(self, key: str, near: int = 0) -> int:
        """Returns the place of the record with a key; quick if it is in the shard of place `near`, or in the next.

        Raises:
            ValueError: if there is no such record.
        """
        wanted = key.encode("latin-1")
        for shard in _outwards(bisect.bisect_right(self._ends, near), len(self._shards)):
            keys = self._of_shard(shard)["key"]
            row = int(np.searchsorted(keys, np.bytes_(wanted)))
            if row < len(keys) and keys[row] == wanted:
                return row + self._ends[shard] - len(keys)
        raise ValueError(self._lacks(key))

    def places(self, keys: Collection[str]) -> dict[str, int]:
        """Returns the places of records by key; reads all indices once.

        Raises:
            ValueError: if a record is not there.
        """
        wanted, found = np.sort(np.array([key.encode("latin-1") for key in keys], "S")), {}
        for shard in range(len(self._shards) if len(wanted) else 0):
            its = self._of_shard(shard)["key"]
            rows = np.flatnonzero(wanted[np.minimum(np.searchsorted(wanted, its), len(wanted) - 1)] == its)
            found.update({its[row].decode("latin-1"): row + self._ends[shard] - len(its) for row in rows.tolist()})
        if lacking := sorted(set(keys) - found.keys()):
            raise ValueError(self._lacks(lacking[0]))
        return found

    def unique_keys(self) -> np.ndarray:
        """Returns all keys, sorted; reads all indices: a second for a million records.

        Raises:
            ValueError: if two records have the same key.
        """
        of_shards = [self._of_shard(shard)["key"] for shard in range(len(self._shards))]
        keys, counts = np.unique(np.concatenate([np.empty(0, "S1"), *of_shards]), return_counts=True)
        if len(twice := keys[counts > 1]):
            shards = (path.name for path, of_shard in zip(self._paths, of_shards, strict=True) if twice[0] in of_shard)
            raise ValueError(
                f"{self.folder}: duplicate record {twice[0].decode('latin-1')}, in {' and '.join(shards)}; {AGAIN}"
            )
        return keys

    def _lacks(self, key: str) -> str:
        return f"{self.folder}: no record {key}, which another set has: they were made from different datasets; run `dvc repro`"

    def _member(self, shard: int, row: int) -> Member:
        key, extension, offset, size = self._of_shard(shard)[row].tolist()
        member = Member(self._paths[shard], key.decode("latin-1"), extension.decode("latin-1"), offset, size)
        if member.extension not in self._extensions:
            wanted = ", ".join(sorted(set(self._extensions)))
            raise ValueError(f"{member.shard}: record {member.key} has extension .{member.extension}, wanted one of {wanted}")
        return member

    def _of_shard(self, shard: int) -> np.ndarray:
        if shard not in self._rows:
            file, path = self._shards[shard], self._paths[shard]
            own = file.name in self._indexed
            rows = _read(self.folder / index_name(file.name)) if own else _index_of_old(path, file, self._storage)
            if len(rows) != file.count:
                raise ValueError(f"{path}: expected {file.count} records, its index has {len(rows)}; {AGAIN}")
            self._rows[shard] = rows
        return self._rows[shard]


def _outwards(first: int, count: int) -> Iterator[int]:
    """Yields the numbers below `count`, the nearest to `first` first."""
    for away in range(max(first, count) + 1):
        yield from (place for place in sorted({first - away, first + away}) if 0 <= place < count)


def index_name(shard: str) -> str:
    """Returns the name of the index of a shard."""
    return shard.removesuffix(".tar") + ".npy"


def write_index(shard: Path) -> File:
    """Writes the index of a finished shard beside it; returns its row for the manifest.

    Raises:
        ValueError: as `scan`; or if a key is there twice, or the disk is full.
    """
    path = shard.with_name(index_name(shard.name))
    return describe(path, _write(_rows(shard), path))


def _rows(shard: Path) -> np.ndarray:
    members = sorted(scan(shard), key=lambda member: member.key.encode("latin-1"))
    for one, other in pairwise(members):
        if one.key == other.key:
            raise ValueError(f"{shard}: duplicate record {one.key}")
    texts = [(member.key.encode("latin-1"), member.extension.encode("latin-1")) for member in members]
    widths = [max((len(text[column]) for text in texts), default=1) for column in (0, 1)]
    dtype = [("key", f"S{widths[0]}"), ("extension", f"S{widths[1]}"), ("offset", "<i8"), ("size", "<i8")]
    return np.array([(*text, m.offset, m.size) for text, m in zip(texts, members, strict=True)], dtype)


def _write(rows: np.ndarray, path: Path) -> int:
    with whole(path, rows.nbytes + 1024) as partial, partial.open("wb") as file:
        np.lib.format.write_array(file, rows, version=(1, 0), allow_pickle=False)
    return len(rows)


def _index_of_old(shard: Path, file: File, storage: Storage) -> np.ndarray:
    """Returns the index of a shard of a set without indices; writes it on first use, after checking the shard's hash."""
    path = work_root() / "indices" / f"{file.sha256}.npy"
    if not path.exists():
        if storage.elsewhere(file):
            storage.content(shard)  # which fetches it
        rows = _rows(shard)
        check_hash(shard, file)
        own = path.with_name(f"{uuid4().hex}.npy")  # several threads and processes may do this at once
        _write(rows, own)
        own.replace(path)
    return _read(path)


def _read(path: Path) -> np.ndarray:
    """Maps an index.

    Raises:
        ValueError: if it is not a complete index.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        if version != (1, 0) or len(shape) != 1 or [(name, dtype[name].kind) for name in dtype.names or ()] != _COLUMNS:
            raise ValueError(f"columns {dtype} of shape {shape}")
        rows: np.ndarray = np.frombuffer(mapped(path).data, dtype, offset=start)
        if len(rows) != shape[0]:
            raise ValueError(f"{len(rows)} of {shape[0]} rows")
    except Exception as error:  # NumPy raises many types for a damaged header
        raise ValueError(
            f"{path}: not a complete index ({str(error)[:100]}); run the stage that writes {path.parent} again"
        ) from None
    return rows
