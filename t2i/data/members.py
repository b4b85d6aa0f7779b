"""Members: the files in a shard, which is a tar; found by reading its headers."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from t2i.data.records import Split, split_of_shard

BLOCK = 512
"""Bytes of a tar header; contents are padded to multiples of it."""
AGAIN = "run the stage that writes it again"
"""What to do about a damaged shard."""


class Member(NamedTuple):
    """The location of a record's file in a shard."""

    shard: Path
    key: str
    extension: str
    offset: int
    """Position of the content in the shard, in bytes."""
    size: int
    """Size of the content, in bytes."""

    @property
    def split(self) -> Split | None:
        """The split of the shard."""
        return split_of_shard(self.shard.name)


def scan(path: Path) -> Iterator[Member]:
    """Yields the members of a ustar file, all of which must be plain files named KEY.EXTENSION.

    Raises:
        ValueError: if the file is damaged or truncated, or has another kind of member; says the byte position.
    """
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        offset = 0
        while (header := file.read(BLOCK)).strip(b"\0"):
            if len(header) < BLOCK or not _checksum_holds(header):
                raise ValueError(f"{path}: damaged or truncated at byte {offset}; {AGAIN}")
            name, size = header[:100].rstrip(b"\0").decode("latin-1"), _number(header[124:136])
            key, _, extension = name.partition(".")
            if header[156:157] not in (b"0", b"\0") or not key or not extension or "/" in name or header[345] != 0:
                raise ValueError(f"{path}: member {name!r} at byte {offset} is not a plain file named KEY.EXTENSION")
            if size is None or offset + BLOCK + size > end:
                raise ValueError(f"{path}: truncated inside {name!r}, at byte {offset}; {AGAIN}")
            yield Member(path, key, extension, offset + BLOCK, size)
            offset += BLOCK + _padded(size)
            file.seek(offset)
        if len(header) < BLOCK:
            raise ValueError(f"{path}: no end-of-archive marker at byte {offset}; {AGAIN}")


def is_header_of(header: bytes, member: Member) -> bool:
    """Returns whether a tar header is that of a record."""
    name = f"{member.key}.{member.extension}".encode("latin-1")
    return header.startswith(name.ljust(100, b"\0")) and _number(header[124:136]) == member.size and header[156] in b"0\0"


def shard_bytes(sizes: Iterable[int]) -> int:
    """Returns the size of a shard in bytes, from the sizes of its records."""
    end = sum(BLOCK + _padded(size) for size in sizes) + 2 * BLOCK
    return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _checksum_holds(header: bytes) -> bool:
    return _number(header[148:156]) == sum(header[:148]) + 8 * 32 + sum(header[156:])


def _number(field: bytes) -> int | None:
    """Returns the value of an octal field of a tar header; None if it is not a number."""
    digits = field.strip(b"\0 ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None
