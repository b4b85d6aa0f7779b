"""Source: the interface of all sources, which yield records (an image with its captions), and functions that they share.

A source is a module in t2i/fetch/sources. It has `Source`, the model of its section of params.yaml, and
`open_source(section, local)`, which returns a Dataset. A source yields records in a fixed order of its own. It does not check
images or captions; `screening` does this for all sources.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any


@dataclass(frozen=True)
class Record:
    """An image with its captions, as found in a source."""

    place: str
    """Where the record is in its source, for messages, such as `metadata.jsonl, line 4`."""
    identity: str
    """Decides the split: a record keeps its split when other records, or another style of the same ones, are added."""
    key: str
    """Name of the record on disk: lower case, without `.` or `/`."""
    read: Callable[[], bytes]
    """Returns the original image file; called at most once, before the next record is requested."""
    captions: tuple[Any, ...]
    """The captions, unchanged and unchecked."""
    problem: str | None = None
    """Why the source cannot read the record, as `kind: detail`; None if it can."""


@dataclass(frozen=True)
class Dataset:
    """The records of a source, and their description for the model card."""

    records: Iterator[Record]
    description: dict[str, Any]
    """Source, version or commit, licence and attribution, as JSON values."""


def content_key(image: bytes) -> str:
    """Returns the first 16 hexadecimal digits of the sha256 of an image file."""
    return hashlib.sha256(image).hexdigest()[:16]


def record_of(place: str, read: Callable[[], bytes], captions: Any) -> Record:
    """Returns a record whose key and identity are the hash of its image.

    Args:
        place: where the record is in its source.
        read: returns the image file; called at once. If it raises a ValueError, that becomes the problem of the record.
        captions: a caption, or a list of captions.
    """
    listed = tuple(captions) if isinstance(captions, (list, tuple)) else (captions,)
    try:
        content = read()
    except ValueError as error:
        return broken(place, str(error))
    key = content_key(content)
    return Record(place, key, key, lambda: content, listed)


def broken(place: str, problem: str) -> Record:
    """Returns a record that its source cannot read.

    Args:
        place: where the record is in its source.
        problem: the reason, as `kind: detail`.
    """
    key = content_key(place.encode(errors="surrogatepass"))
    return Record(place, key, key, bytes, (), problem)


def read_inside(folder: Path, name: str) -> bytes:
    """Returns the content of a file inside a folder.

    Raises:
        ValueError: if the file cannot be read, or the name leads outside the folder, where DVC tracks no changes.
    """
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError(f"missing image: {name!r} is outside {folder}; wanted a relative path inside it")
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"missing image: no such file {name!r} in {folder}") from None
    except OSError as error:
        raise ValueError(f"missing image: {name!r} in {folder}: {error.strerror}") from None


def matching(folder: Path, pattern: str) -> list[Path]:
    """Returns the files in a folder that match a pattern, sorted.

    Raises:
        ValueError: if no file matches, or the pattern leads outside the folder.
    """
    if PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
        raise ValueError(f"`fetch.source.files` {pattern!r}: wanted a pattern inside `fetch.local`, such as `*.tar`")
    if not (found := sorted(path for path in folder.glob(pattern or "*") if path.is_file())):
        raise ValueError(f"`fetch.source.files` {pattern!r} matches no file in {folder}; change it, or `fetch.local`")
    return found
