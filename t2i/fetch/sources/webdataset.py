"""Source `webdataset`: tars of images and captions, as img2dataset writes them: KEY.jpg beside KEY.txt or KEY.json.

This module reads them with tarfile instead of the package webdataset. That package stops silently if a tar is truncated or a
header is damaged, unpickles members, and runs a shell command for a name that starts with `pipe:`. No files are extracted.
"""

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from t2i.core.params import Section
from t2i.fetch.source import Dataset, Record, broken, matching, record_of


class Txt(Section):
    """The caption is the text of KEY.txt."""

    name: Literal["txt"]

    def __call__(self, text: str) -> Any:
        """Returns the caption that the file holds."""
        return text.strip()


class Json(Section):
    """The caption, or a list of captions, is an entry of KEY.json."""

    name: Literal["json"]
    key: str
    """Key of the entry, such as `caption`."""

    def __call__(self, text: str) -> Any:
        """Returns the caption, or the list of captions, that the file holds."""
        try:
            return json.loads(text)[self.key]
        except KeyError:
            raise ValueError(f"no caption: no {self.key!r} (`fetch.source.caption.key`) in its json") from None
        except (ValueError, TypeError, RecursionError):
            raise ValueError(f"no caption: its json is not an object, got {text[:60]!r}") from None


class Source(Section):
    """`fetch.source` with `name: webdataset`; the folder is `fetch.local`, so that DVC tracks its changes."""

    name: Literal["webdataset"]
    files: str
    """Pattern for the tars to read, such as `*.tar`; tars may be compressed (`*.tar.gz`)."""
    image_extensions: list[str] = Field(min_length=1)
    """Extensions of the images, such as [jpg, png, webp]; the first one that a record has is used."""
    caption: Annotated[Txt | Json, Field(discriminator="name")]
    """Where the captions are: `{name: txt}` or `{name: json, key: caption}`."""


class _Member(NamedTuple):
    key: str
    extension: str
    content: bytes


def open_source(section: Source, local: Path) -> Dataset:
    """Returns the records of every tar, in the order of the file names, with one record in memory at a time.

    Args:
        section: the section `fetch.source`.
        local: the folder.

    Raises:
        ValueError: if no file matches the pattern, or a tar is damaged or truncated.
    """
    files = matching(local, section.files)
    return Dataset(_records(section, local, files), {"source": f"WebDataset tars of {local.name}", "files": section.files})


def _records(section: Source, local: Path, files: list[Path]) -> Iterator[Record]:
    wanted = {*section.image_extensions, section.caption.name}
    for path in files:
        for key, group in groupby(_members(path, wanted), key=lambda member: member.key):
            place = f"{path.relative_to(local)}, {key}"
            parts: dict[str, bytes] = {}
            for member in group:
                if member.extension in parts:
                    raise ValueError(f"{place}.{member.extension}: duplicate name, wanted each name once in a tar")
                parts[member.extension] = member.content
            try:
                captions = _captions(section.caption, parts)
            except ValueError as error:
                yield broken(place, str(error))
            else:
                yield record_of(place, partial(_image, section.image_extensions, parts), captions)


def _image(extensions: list[str], parts: dict[str, bytes]) -> bytes:
    for extension in extensions:
        if extension in parts:
            return parts[extension]
    raise ValueError(f"missing image: none of {', '.join(extensions)} (`fetch.source.image_extensions`) beside its caption")


def _captions(source: Txt | Json, parts: dict[str, bytes]) -> Any:
    if source.name not in parts:
        raise ValueError(f"no caption: no {source.name} (`fetch.source.caption`) beside its image")
    # A byte that is not UTF-8 becomes a lone surrogate; screening then rejects the caption.
    return source(parts[source.name].decode("utf-8", errors="surrogateescape"))


def _members(path: Path, wanted: set[str]) -> Iterator[_Member]:
    """Yields the files of a tar that have one of the extensions, then checks that the tar has a proper end."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                file = tar.extractfile(member) if member.isfile() and stem and extension.lower() in wanted else None
                if file is not None:
                    yield _Member(f"{folder}/{stem}" if folder else stem, extension.lower(), file.read())
                tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps the headers of all members
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"neither a header nor the end of a tar at byte {tar.offset}")
            while tar.fileobj.read(1 << 20):  # read a compressed tar to its end, where the checksum is
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged or truncated ({reason}); download it again") from None
