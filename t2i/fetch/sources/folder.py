"""Source `folder`: a folder of images with metadata files, in the Hub's imagefolder format.

A metadata file is metadata.jsonl, metadata.csv or metadata.parquet; each folder below may have one of its own. Each line or row
has `file_name`, a path relative to that folder, and a caption: `{"file_name": "0001.png", "text": "a red heart"}`. In JSON and
Parquet, the caption may be a list of captions.
"""

import csv
import json
import os
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from t2i.core.params import Section
from t2i.fetch.columns import check_columns, values
from t2i.fetch.source import Dataset, Record, files_in, open_text, other_images, read_inside, record_of


class Source(Section):
    """`fetch.source` with `name: folder`; the folder is `fetch.local`, so that DVC tracks its changes."""

    reads_local: ClassVar[bool] = True
    name: Literal["folder"]
    caption_column: str
    """Key or column of the captions in the metadata files."""


def open_source(section: Source, local: Path) -> Dataset:
    """Returns the images that the metadata files name, with their captions.

    Args:
        section: the section `fetch.source`.
        local: the folder.

    Raises:
        ValueError: if there is no metadata file, a folder has two of them, or a line cannot be read; names the line.
    """
    found = sorted((path for name in ROWS for path in files_in(local, f"**/{name}")), key=lambda path: path.parent)
    if not found:
        raise ValueError(
            f"{local / 'metadata.jsonl'}: missing, and there is no metadata.csv or metadata.parquet; wanted one of them, "
            f'with one line per image: {{"file_name": "0001.png", "{section.caption_column}": "a caption"}}'
        )
    for one, other in pairwise(found):
        if one.parent == other.parent:
            raise ValueError(f"{one.parent}: found {one.name} and {other.name}, wanted only one: remove the other")
    unnamed: list[str] = []
    return Dataset(_records(section, local, found, unnamed), {"source": f"folder {local.name}"}, unnamed)


def _records(section: Source, local: Path, files: list[Path], unnamed: list[str]) -> Iterator[Record]:
    named = set()
    for metadata in files:
        for where, row in ROWS[metadata.name](metadata, section.caption_column):
            place = f"{metadata.relative_to(local)}, {where}"
            try:
                file, caption = row["file_name"], row[section.caption_column]
                if not isinstance(file, str):
                    raise TypeError(f"`file_name` is {file!r}")
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{local / place}: wanted `file_name` and `{section.caption_column}` (`fetch.source.caption_column`), "
                    f"got {_shown(row)} ({error!r})"
                ) from None
            named.add(os.path.abspath(metadata.parent / file))
            yield record_of(f"{place} ({file})", partial(read_inside, local, file, metadata.parent), caption)
    unnamed += other_images(local, named)


def _json_rows(path: Path, caption_column: str) -> Iterator[tuple[str, Any]]:
    del caption_column
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            text = line.lstrip("\ufeff")  # the mark of a file that was appended to this one
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number}: wanted a JSON object, got {_shown(line.rstrip())} ({error})"
                ) from None
            yield f"line {number}", row


def _csv_rows(path: Path, caption_column: str) -> Iterator[tuple[str, Any]]:
    with open_text(path, newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            if missing := {"file_name", caption_column} - set(rows.fieldnames or ()):
                raise ValueError(_no_columns(path, missing, list(rows.fieldnames or ())))
            for row in rows:
                if None in row or None in row.values():
                    wrong = "more" if None in row else "fewer"
                    raise ValueError(
                        f"{path}, line {rows.line_num}: {wrong} fields than the header ({len(rows.fieldnames or ())}), got "
                        f"{_shown(list(row.values()))}; put text that has a comma in quotes"
                    )
                yield f"line {rows.line_num}", row
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.reader.line_num}: not valid CSV: {error}") from None


def _parquet_rows(path: Path, caption_column: str) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as table:
            names = table.schema_arrow.names
            if missing := {"file_name", caption_column} - set(names):
                raise ValueError(_no_columns(path, missing, names))
            check_columns(str(path), table.schema_arrow, None, caption_column)
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=["file_name", caption_column]):
                for file, caption in zip(*map(values, batch.columns), strict=True):
                    yield f"row {number}", {"file_name": file, caption_column: caption}
                    number += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not valid Parquet: {error}") from None


def _no_columns(path: Path, missing: set[str], names: list[str]) -> str:
    return (
        f"{path}: no column {', '.join(map(repr, sorted(missing)))}; it has {', '.join(names) or 'no columns'}: "
        "rename a column, or change `fetch.source.caption_column`"
    )


def _shown(row: Any) -> str:
    return repr(row)[:80]


ROWS = {"metadata.jsonl": _json_rows, "metadata.csv": _csv_rows, "metadata.parquet": _parquet_rows}
"""The reader for each metadata file; it yields the place and the content of every line or row."""
