"""Manifest: lists the files of a set and what the set was made from; checks that the set is complete and up to date."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tqdm import tqdm

from t2i.core.files import write_json
from t2i.core.params import Section
from t2i.data.digests import sha256_of
from t2i.data.storage import MANIFEST, File, Folders, Storage

_VERSION = 2


class OutOfDate(ValueError):
    """A set was made from other inputs; the stage that writes it makes it anew, and so does `dvc repro`."""


class Manifest(Section):
    """The content of manifest.json."""

    version: int
    made_by: dict[str, Any]
    """Everything that decides the content: parameters, digests of the inputs, library versions."""
    files: list[File]


def describe(path: Path, count: int) -> File:
    """Returns a file's row for the manifest."""
    return File(name=path.name, count=count, bytes=path.stat().st_size, sha256=sha256_of(path))


def write_manifest(folder: Path, files: list[File], made_by: dict[str, Any]) -> None:
    """Writes manifest.json: the files, sorted by name, and what they were made from."""
    files = sorted(files, key=lambda file: file.name)
    write_json(folder / MANIFEST, Manifest(version=_VERSION, made_by=made_by, files=files).model_dump())


def read_manifest(folder: Path, storage: Storage | None = None) -> Manifest:
    """Returns the manifest of a set, after checking that the set has exactly its files, with the stated sizes.

    Args:
        folder: the set.
        storage: where its shards are; None: in the folder.

    Raises:
        OutOfDate: if another version of this project wrote it.
        ValueError: if the manifest is damaged, or the files differ from it; says the file, what was expected and what was
            found.
    """
    path, remedy = folder / MANIFEST, f"run the stage that writes {folder}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("version", _VERSION) != _VERSION:
            raise OutOfDate(f"{path}: version {content['version']!r}, wanted {_VERSION}; {remedy} again, or `dvc repro`")
        manifest = Manifest.model_validate(content)
    except OutOfDate:
        raise
    except FileNotFoundError:
        raise ValueError(f"{path}: missing: this set was never finished; {remedy}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{path}: damaged: {place or 'the whole file'}: {problem['msg']}; {remedy} again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged ({error}); {remedy} again") from None
    present = (storage or Folders()).sizes(folder, manifest.files)
    expected = {file.name: file.bytes for file in manifest.files}
    for name, size in expected.items():
        if present.get(name) != size:
            found = "nothing" if name not in present else f"{present[name]} bytes"
            no_shards = not any(file.is_shard and file.name in present for file in manifest.files)
            elsewhere = ", or set `runtime.store` to where the shards are" if no_shards else ""
            raise ValueError(f"{folder / name}: expected {size} bytes, found {found}; {remedy} again{elsewhere}")
    if extra := sorted(set(present) - set(expected)):
        raise ValueError(f"{folder / extra[0]}: not in {path}; {remedy} again")
    return manifest


def check_hashes(
    folder: Path,
    names: Collection[str] | None = None,
    storage: Storage | None = None,
    *,
    shown: bool = True,
    fetched: bool = False,
) -> None:
    """Compares the sha256 of the files of a set with its manifest; takes some seconds for 10 GB.

    Args:
        folder: the set.
        names: the files to check; None: all.
        storage: where its shards are; None: in the folder.
        shown: whether to show a progress bar, after 2 s.
        fetched: whether to fetch the shards that are elsewhere. They are compared whenever that is done.

    Raises:
        ValueError: if a hash differs; says the file, the expected sha256 and the sha256 found.
    """
    storage = storage or Folders()
    files = [file for file in read_manifest(folder, storage).files if names is None or file.name in names]
    for file in tqdm(files, desc=f"checking {folder}", unit=" files", delay=2, disable=not shown):
        if (path := storage.path(folder, file)) == folder / file.name:
            check_hash(path, file)
        elif fetched:
            storage.content(path)


def check_hash(path: Path, file: File) -> None:
    """Compares the sha256 of a file with its row; see `check_hashes`."""
    if (found := sha256_of(path)) != file.sha256:
        raise ValueError(
            f"{path}: expected sha256 {file.sha256[:16]}, found {found[:16]}: the file changed after it was written; run the "
            f"stage that writes {path.parent} again"
        )


def check_made_by(folder: Path, wanted: Mapping[str, Any], section: str, storage: Storage | None = None) -> None:
    """Checks that a set was made from the current inputs.

    Args:
        folder: the set.
        wanted: the expected entries of `made_by`; in nested mappings, only the keys that the manifest has are compared.
        section: the section of params.yaml whose stage writes the set, such as `encode.images`; its values are the entry
            `params`.
        storage: where its shards are; None: in the folder.

    Raises:
        OutOfDate: if an entry is missing or differs; says the first difference, with both values, and the command.
        ValueError: if the set is damaged.
    """
    made_by, remedy = (
        read_manifest(folder, storage).made_by,
        f"`t2i {section.replace('.', ' ')}` or `dvc repro` writes it again",
    )
    if missing := sorted(wanted.keys() - made_by.keys()):
        raise OutOfDate(f"{folder / MANIFEST}: does not say which `{missing[0]}` it was made with; {remedy}")
    for place, made, now in _differences(made_by, wanted, ""):
        name = f"{section}.{place.removeprefix('params.')}" if place.startswith("params.") else place
        raise OutOfDate(f"{folder}: was made with `{name}` {made!r}, but it is now {now!r}; {remedy}")


def _differences(made_by: Mapping[str, Any], wanted: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields the place of each entry that differs, what it was and what it should be."""
    for name, made in made_by.items():
        if name not in wanted or made == (now := wanted[name]):
            continue
        if isinstance(made, Mapping) and isinstance(now, Mapping) and "name" not in made:
            yield from _differences(made, now, f"{place}{name}.")
        else:
            yield f"{place}{name}", made, now
