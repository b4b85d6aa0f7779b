"""What a source gives: records, each an image with its captions; and what sources of files share.

A source is a module of t2i/fetch/sources with `Source`, its section of params.yaml, and `open_source(section, local)`, which
returns a Dataset. A source keeps its own order and judges neither images nor captions: `screening` does that for all of them.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any


@dataclass(frozen=True)
class Record:
    """One captioned image as its source has it."""

    place: str
    """Where its source has it, for a person to look it up: `metadata.jsonl, line 4`."""
    identity: str
    """What the split hangs on: new records, or another style of the same ones, move none."""
    key: str
    """Its name on disk: lower case, without `.` or `/`."""
    read: Callable[[], bytes]
    """Gives the encoded image file, untouched; called at most once, before the next record is asked for."""
    captions: tuple[Any, ...]
    """One or more captions, as the source has them."""
    problem: str | None = None
    """Why the source cannot give it whole, as `kind: detail`; None where it can."""


@dataclass(frozen=True)
class Dataset:
    """What a source gives: its records, and what a model card says of them."""

    records: Iterator[Record]
    description: dict[str, Any]
    """Source, version or commit, licence, attribution: JSON."""


def content_key(image: bytes) -> str:
    """Returns the first 16 hexadecimal digits of the sha256 of an image's bytes."""
    return hashlib.sha256(image).hexdigest()[:16]


def record_of(place: str, read: Callable[[], bytes], captions: Any) -> Record:
    """Returns the record of an image that is known by its content alone.

    Args:
        place: where the source has it.
        read: gives the image's bytes, called here and now; a ValueError that it raises becomes the record's problem.
        captions: a caption, or a list of them.
    """
    listed = tuple(captions) if isinstance(captions, (list, tuple)) else (captions,)
    try:
        content = read()
    except ValueError as error:
        return broken(place, str(error))
    key = content_key(content)
    return Record(place, key, key, lambda: content, listed)


def broken(place: str, problem: str) -> Record:
    """Returns a record that its source cannot give whole.

    Args:
        place: where the source has it.
        problem: why, as `kind: detail`.
    """
    key = content_key(place.encode(errors="surrogatepass"))
    return Record(place, key, key, bytes, (), problem)


def read_inside(folder: Path, name: str) -> bytes:
    """Returns the content of a file of a folder.

    Raises:
        ValueError: where there is no such file, or the name leads out of the folder, whose changes alone DVC watches.
    """
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError(f"missing image: {name!r} leads out of {folder}; wanted a path relative to it")
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"missing image: no such file {name!r} in {folder}") from None
    except OSError as error:
        raise ValueError(f"missing image: {name!r} in {folder}: {error.strerror}") from None


def matching(folder: Path, pattern: str) -> list[Path]:
    """Returns the files of a folder that fit a pattern, sorted.

    Raises:
        ValueError: where there are none, naming the pattern's parameter.
    """
    if PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
        raise ValueError(f"`fetch.source.files` {pattern!r}: wanted a pattern inside `fetch.local`, such as `*.tar`")
    if not (found := sorted(path for path in folder.glob(pattern or "*") if path.is_file())):
        raise ValueError(f"`fetch.source.files` {pattern!r} fits no file in {folder}; change it, or `fetch.local`")
    return found
