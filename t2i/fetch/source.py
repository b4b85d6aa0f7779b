"""Source: the interface of all sources, which yield records (an image with its captions), and functions that they share.

A source is a module in t2i/fetch/sources. It has `Source`, the model of its section of params.yaml, and
`open_source(section, local)`, which returns a Dataset. `Source.reads_local` says whether it reads the folder `fetch.local`.
A source yields records in a fixed order of its own. It does not check images or captions; `screening` does this for all
sources.
"""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TextIO

from pydantic import AfterValidator, Field

from t2i.data.decoding import EXTENSIONS
from t2i.fetch.watched import UNSEEN

_OTHERS = "apng dib heic heif j2k jfif jpe jpeg jpx jxl pbm pgm pnm tga tiff"
IMAGES = {f".{extension}" for extension in (*EXTENSIONS.values(), *_OTHERS.split())}
"""The ends of the names of image files, also of formats that are not supported."""


def _plain(extensions: list[str]) -> list[str]:
    plain = [extension.strip().lower().removeprefix(".") for extension in extensions]
    for extension in plain:
        if not re.fullmatch(r"[\w.]+", extension):
            raise ValueError(f"got {extension!r}, wanted extensions such as jpg or txt")
    return plain


Extensions = Annotated[list[str], Field(min_length=1), AfterValidator(_plain)]
"""Extensions of files in a section of params.yaml; in lower case and without a dot."""


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
    repeats: int = 1
    """How often training uses the record in an epoch."""


@dataclass(frozen=True)
class Dataset:
    """The records of a source, and their description for the model card."""

    records: Iterator[Record]
    description: dict[str, Any]
    """Source, version or commit, licence and attribution, as JSON values."""
    unnamed: list[str] = field(default_factory=list)
    """The images that no caption names, by place; complete once all records are read."""


def content_key(image: bytes) -> str:
    """Returns the first 16 hexadecimal digits of the sha256 of an image file."""
    return hashlib.sha256(image).hexdigest()[:16]


def record_of(place: str, read: Callable[[], bytes], captions: Any, within: str | None = None, repeats: int = 1) -> Record:
    """Returns a record whose key and identity are the hash of its image.

    Args:
        place: where the record is in its source.
        read: returns the image file; called at once. If it raises a ValueError, that becomes the problem of the record.
        captions: a caption, or a list of captions.
        within: see `broken`.
        repeats: how often training uses the record in an epoch.
    """
    listed = tuple(captions) if isinstance(captions, (list, tuple)) else (captions,)
    try:
        content = read()
    except ValueError as error:
        return broken(place, str(error), within)
    key = content_key(content)
    return Record(place, key, key, lambda: content, listed, repeats=repeats)


def broken(place: str, problem: str, within: str | None = None) -> Record:
    """Returns a record that its source cannot read.

    Args:
        place: where the record is in its source.
        problem: the reason, as `kind: detail`.
        within: the place without the folder `fetch.local`, if it begins with it: that decides whether the record is drawn, so
            that a project may be moved. None: the place itself.
    """
    key = content_key((within or place).encode(errors="surrogatepass"))
    return Record(place, key, key, bytes, (), problem)


def is_inside(path: Path, folder: Path) -> bool:
    """Returns whether a path is inside a folder, which may be a link, where DVC sees it; links below are not followed."""
    whole = Path(os.path.abspath(path))
    roots = [root for root in (Path(os.path.abspath(folder)), folder.resolve()) if whole.is_relative_to(root)]
    return any(not set(UNSEEN) & set(whole.relative_to(root).parts) for root in roots)


def files_in(local: Path, pattern: str) -> list[Path]:
    """Returns the files in a folder that match a pattern and that DVC sees, sorted."""
    return sorted(path for path in local.glob(pattern) if path.is_file() and is_inside(path, local))


def in_experiment(local: Path) -> bool:
    """Returns whether a folder is in the copy of the checkout that a DVC experiment runs in: it has only what is tracked."""
    return not local.is_absolute() and "/.dvc/tmp/" in f"{Path.cwd().as_posix()}/"


def other_images(local: Path, named: Collection[str]) -> list[str]:
    """Returns the images in a folder that are not among the named ones, sorted; `named` has absolute paths."""
    found = (str(path.relative_to(local)) for path in files_in(local, "**/*") if path.suffix.lower() in IMAGES)
    roots = (os.path.abspath(local), os.path.realpath(local))  # two names if the folder is a link
    return sorted(name for name in found if not any(os.path.join(root, name) in named for root in roots))


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Opens a text file in UTF-8, with or without a byte-order mark.

    A byte that is not UTF-8 becomes a lone surrogate. File names may have them; screening rejects captions that have one.

    Raises:
        ValueError: if the file is in UTF-16.
    """
    with path.open("rb") as file:
        check_not_utf_16(file.read(16), str(path))
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def check_not_utf_16(start: bytes, place: str) -> None:
    """Raises a ValueError if a text begins with the byte-order mark of UTF-16, or has a zero in every second byte."""
    zeros = len(start) > 3 and any(start[:2]) and not (any(start[:16:2]) and any(start[1:16:2]))
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or zeros:
        raise ValueError(f"{place}: text in UTF-16 or UTF-32, wanted UTF-8: save the file as UTF-8")


def matching(local: Path, pattern: str) -> list[Path]:
    """Returns the files in a folder that match a pattern, sorted.

    Raises:
        ValueError: if no file matches, or the pattern leads outside the folder.
    """
    if not is_inside(local / pattern, local):
        raise ValueError(f"`fetch.source.files` {pattern!r}: wanted a pattern inside `fetch.local`, such as `*.tar`")
    relative = os.path.relpath(os.path.abspath(local / pattern), os.path.abspath(local)) if pattern else "*"
    if not (found := files_in(local, relative)):
        lacking = "; if the checkout has one, neither git nor DVC tracks it: `dvc add` it there" if in_experiment(local) else ""
        raise ValueError(f"`fetch.source.files` {pattern!r} matches no file in {local}; change it, or `fetch.local`{lacking}")
    return found
