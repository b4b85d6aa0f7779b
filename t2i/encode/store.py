"""A store of finished records: a set takes from it what an earlier set, or a killed run, has already made.

data/work/encode-images-HASH/DIGEST.{tar,npy}    a finished shard and its index: hard links to the files of the set, or copies
data/work/encode-images-HASH/DIGEST.json         the rows of its files in the manifest, and place and hash of each record in it
data/work/encode-images-HASH/complete            exists if the last set is complete (training removes folders with `finished`)

HASH identifies everything that decides the bytes of a record except its own input, which is the record's identity. DIGEST
identifies the records of a shard. So new data, which moves records among shards, costs only its own records.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from t2i.core.files import flush, write_text
from t2i.core.params import Section
from t2i.data.bucket import StoreLost
from t2i.data.digests import sha256_of
from t2i.data.members import scan
from t2i.data.storage import File, Storage

COMPLETE = "complete"


class Finished(Section):
    """A finished shard in the store."""

    files: list[File]
    """Its files, with their names in the store."""
    records: dict[str, tuple[int, int, str]]
    """Offset, size and hash of each record, by its identity."""


class Location(NamedTuple):
    """Where the content of a record lies, and its hash."""

    path: Path
    offset: int
    size: int
    digest: str


class Found(NamedTuple):
    """What the store has of one shard."""

    identities: Mapping[str, str]
    """The identity of every record of the shard, by key."""
    stored: dict[str, Location]
    """The places of the records that the store has, by key."""
    digest: str | None
    """The DIGEST of the shard, if the store has the whole shard."""

    @property
    def missing(self) -> list[str]:
        """The keys of the records that must be made."""
        return [] if self.digest else [key for key in self.identities if key not in self.stored]


class Store:
    """The store in a folder, as it was at the first look.

    Only content whose hash is right is ever taken from its folder; damaged content counts as missing. A shard that is elsewhere
    counts as whole if its size is right; its hash is compared when it is read.

    Args:
        folder: the store.
        storage: where its shards are.
    """

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.folder, self.storage = folder, storage
        self._used = set[str]()

    @cached_property
    def _shards(self) -> dict[str, Finished]:
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(ValidationError, UnicodeDecodeError):
                found[path.stem] = Finished.model_validate_json(path.read_text(encoding="utf-8"))
        return found

    @cached_property
    def _places(self) -> dict[str, Location]:
        return {
            its: Location(self.storage.path(self.folder, file), offset, size, digest)
            for finished in self._shards.values()
            for file in finished.files
            if file.is_shard and ((self.folder / file.name).exists() or self.storage.elsewhere(file))
            for its, (offset, size, digest) in finished.records.items()
        }

    def find(self, identities: Mapping[str, str]) -> Found:
        """Returns what is here of a shard with these records, after comparing it with its hashes."""
        digest = identity(sorted(identities.items()))
        if digest in self._shards and all(map(self._is_whole, self._shards[digest].files)):
            self._used.add(digest)
            return Found(identities, {}, digest)
        places = {key: self._place(its) for key, its in identities.items()}
        return Found(identities, {key: place for key, place in places.items() if place is not None}, None)

    def content(self, place: Location) -> bytes:
        """Returns the bytes of a record.

        Raises:
            ValueError: if their hash is wrong.
        """
        content = self.storage.content(place.path)[place.offset : place.offset + place.size].tobytes()
        if _hash(content) != place.digest:
            raise ValueError(f"{place.path}: damaged at byte {place.offset}; run the same command again")
        return content

    def give(self, digest: str, path: Path) -> list[File]:
        """Puts a whole shard at `path`, and the files that belong to it beside it; returns their rows."""
        rows = []
        for file in self._shards[digest].files:
            name = path.stem + file.name.removeprefix(digest)
            if self._stays(file):
                _link(self.folder / file.name, path.with_name(name))
            rows.append(file.model_copy(update={"name": name}))
        return rows

    def keep(self, found: Found, path: Path, rows: list[File], contents: Mapping[str, bytes]) -> None:
        """Adds a shard that was written at `path`.

        Args:
            found: what the store had of it.
            path: the shard.
            rows: the rows of its files in the manifest.
            contents: the bytes of its records, by key.
        """
        digest = identity(sorted(found.identities.items()))
        files = [row.model_copy(update={"name": digest + row.name.removeprefix(path.stem)}) for row in rows]
        for row, file in zip(rows, files, strict=True):
            _link(path.with_name(row.name), self.folder / file.name)
        records = {
            found.identities[member.key]: (member.offset, member.size, _hash(contents[member.key])) for member in scan(path)
        }
        for row, file in zip(rows, files, strict=True):
            if not self._stays(file):
                path.with_name(row.name).unlink()
        write_text(self.folder / f"{digest}.json", Finished(files=files, records=records).model_dump_json())
        self._used.add(digest)

    def prune(self) -> None:
        """Removes everything that the last set does not need."""
        for path in self.folder.iterdir():
            name, _, end = path.name.partition(".")
            if path.is_file() and end and (name not in self._used or path.suffix == ".partial"):
                path.unlink()
        (self.folder / COMPLETE).touch()

    def _stays(self, file: File) -> bool:
        """Hands a file of the store over to where the shards are; returns whether it stays in the folder."""
        path = self.folder / file.name
        if path.exists():
            self.storage.put(path, file)
        return path.exists()

    def _is_whole(self, file: File) -> bool:
        path = self.folder / file.name
        if path.is_file():
            return path.stat().st_size == file.bytes and sha256_of(path) == file.sha256
        return self.storage.elsewhere(file)

    def _place(self, its: str) -> Location | None:
        if its not in self._places:
            return None
        try:
            self.content(self._places[its])
        except StoreLost:
            raise
        except (OSError, ValueError):  # missing, or damaged
            return None
        return self._places[its]


def identity(*parts: Any) -> str:
    """Returns 32 hexadecimal digits that identify its arguments, of the kinds that JSON has."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()[:32]


def _link(file: Path, to: Path) -> None:
    """Gives a file a second name, or copies it where the disk has no hard links; replaces what is there."""
    partial = to.with_name(f"{to.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(file, partial)
    except OSError:
        shutil.copyfile(file, partial)
        flush(partial)
    partial.replace(to)
