"""Source `webdataset`: tars of images and captions, as img2dataset writes them: KEY.jpg beside KEY.txt or KEY.json."""

import io
import json
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from t2i.core.params import Section
from t2i.fetch.source import IMAGES, Dataset, Extensions, Record, broken, check_not_utf_16, matching, record_of
from t2i.fetch.tars import members, opened


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

    reads_local: ClassVar[bool] = True
    name: Literal["webdataset"]
    files: str
    """Pattern for the tars to read, such as `*.tar`; tars may be compressed (`*.tar.gz`)."""
    image_extensions: Extensions
    """Extensions of the images, such as [jpg, png, webp]; the first one that a record has is used."""
    caption: Annotated[Txt | Json, Field(discriminator="name")]
    """Where the captions are: `{name: txt}` or `{name: json, key: caption}`."""


class Group(NamedTuple):
    """The files of a record: their names in the tar, by extension."""

    key: str
    names: dict[str, str]


def open_source(section: Source, local: Path) -> Dataset:
    """Returns the records of every tar, in the order of the file names, with one record in memory at a time.

    The names in a tar are read before its files, so a damaged tar gives no records.

    Args:
        section: the section `fetch.source`.
        local: the folder.

    Raises:
        ValueError: if no file matches the pattern, or a tar is damaged or truncated.
    """
    unnamed: list[str] = []
    description = {"source": f"WebDataset tars of {local.name}", "files": section.files}
    return Dataset(_records(section, local, matching(local, section.files), unnamed), description, unnamed)


def _records(section: Source, local: Path, files: list[Path], unnamed: list[str]) -> Iterator[Record]:
    caption = section.caption.name
    ends = (*IMAGES, *(f".{extension}" for extension in (*section.image_extensions, caption)))
    for path in files:
        with opened(path) as tar:
            found = members(tar, lambda name: name.lower().endswith(ends))
            try:
                groups = group(found, section.image_extensions, caption)
            except ValueError as error:
                raise ValueError(f"{path.relative_to(local)}, {error}") from None
            if not isinstance(tar.fileobj, io.BufferedReader):
                _check_order(path, groups, found)
            place = path.relative_to(local)
            for key, names in groups:
                yield _record(section, tar, f"{place}, {key}", {extension: found[name] for extension, name in names.items()})
            used = {
                names[extension] for _, names in groups for extension in (_image(section, names), caption) if extension in names
            }
            unnamed += [f"{place}, {name}" for name in found if name not in used and name.lower().endswith(tuple(IMAGES))]


def group(names: Iterable[str], images: Collection[str], caption: str) -> list[Group]:
    """Returns the files of each record.

    In a WebDataset, the key of a file ends at the first dot of its name: `000.seg.png` belongs to `000` and has the extension
    `seg.png`. A name whose extension is not wanted is also tried with the last dot: `IMG_v1.00.png` is then an image of record
    `IMG_v1.00`, unless it has no caption and `IMG_v1` is a record.

    Args:
        names: the names in a tar, in their order. Names that begin with a dot are left out.
        images: the extensions of images.
        caption: the extension of captions.

    Raises:
        ValueError: if a record has two files with the same extension.
    """
    wanted = sorted({*images, caption}, key=len, reverse=True)
    groups: dict[str, dict[str, str]] = {}
    above: dict[str, str] = {}
    for name in names:
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem:
            continue
        key, extension = f"{folder}{slash}{stem}", extension.lower()
        if extension not in wanted:
            extension = next((end for end in wanted if base.lower().endswith(f".{end}")), "")
            if not extension:
                continue
            first, key = key, name[: -len(extension) - 1]
            above[key] = first
        if other := groups.setdefault(key, {}).get(extension):
            raise ValueError(f"{other} and {name}: duplicate name, wanted each name once in a tar")
        groups[key][extension] = name

    def complete(key: str) -> bool:
        return caption in groups.get(key, {}) and not groups[key].keys().isdisjoint(images)

    return [Group(key, its) for key, its in groups.items() if key not in above or complete(key) or not complete(above[key])]


def _check_order(path: Path, groups: list[Group], found: Mapping[str, tarfile.TarInfo]) -> None:
    """Checks that the files of each record follow one another: a compressed tar can only be read from start to end."""
    end = 0
    for key, names in groups:
        offsets = sorted(found[name].offset for name in names.values())
        if offsets[0] < end:
            raise ValueError(
                f"{path}: the files of {key} do not follow one another, wanted the files of a record together in a compressed "
                "tar: pack it again with `tar --sort=name`"
            )
        end = offsets[-1]


def _record(section: Source, tar: tarfile.TarFile, place: str, parts: Mapping[str, tarfile.TarInfo]) -> Record:
    contents = {}
    for extension, member in sorted(parts.items(), key=lambda part: part[1].offset):
        if extension in (_image(section, parts), section.caption.name):
            if (file := tar.extractfile(member) if member.isreg() else None) is None:
                return broken(place, f"not a file: {member.name} is a link or a device in the tar")
            contents[extension] = file.read()
    try:
        captions = _captions(section.caption, contents, place)
    except ValueError as error:
        return broken(place, str(error))
    return record_of(place, partial(_content, section, contents), captions)


def _image(section: Source, extensions: Collection[str]) -> str | None:
    """Returns the extension of the image that is used."""
    return next((extension for extension in section.image_extensions if extension in extensions), None)


def _content(section: Source, contents: Mapping[str, bytes]) -> bytes:
    if (extension := _image(section, contents)) is None:
        wanted = f"none of {', '.join(section.image_extensions)} (`fetch.source.image_extensions`)"
        raise ValueError(f"missing image: {wanted} beside its caption")
    return contents[extension]


def _captions(source: Txt | Json, contents: Mapping[str, bytes], place: str) -> Any:
    if source.name not in contents:
        raise ValueError(f"no caption: no {source.name} (`fetch.source.caption`) beside its image")
    check_not_utf_16(contents[source.name], f"caption is not UTF-8: {place}.{source.name}")
    # A byte that is not UTF-8 becomes a lone surrogate; screening then rejects the caption.
    return source(contents[source.name].decode("utf-8-sig", errors="surrogateescape"))
