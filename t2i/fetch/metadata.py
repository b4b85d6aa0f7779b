"""Metadata: captions in files that name the images of a folder, in the Hub's imagefolder format.

A metadata file is metadata.jsonl, metadata.csv or metadata.parquet; each folder below may have one of its own. Each line or row
has `file_name`, a path relative to that folder, and a caption: `{"file_name": "photos/0001.png", "text": "a red heart"}`. In
JSON and Parquet, the caption may be a list of captions.
"""

import csv
import json
import os
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from t2i.core.params import Section
from t2i.fetch.columns import check_columns, values
from t2i.fetch.inside import Inside
from t2i.fetch.source import IMAGES, Dataset, Record, broken, files_in, in_experiment, open_text, other_images, record_of


class Metadata(Section):
    """The captions are in metadata files, which name the images."""

    name: Literal["metadata"]
    column: str
    """Key or column of the captions in the metadata files."""

    def __call__(self, local: Path) -> Dataset:
        """Returns the images that the metadata files in a folder name, with their captions.

        Raises:
            ValueError: if there is no metadata file, a folder has two of them, or they have no rows or not the right columns.
        """
        found = sorted((path for name in ROWS for path in files_in(local, f"**/{name}")), key=lambda path: path.parent)
        example = f'{{"file_name": "photos/0001.png", "{self.column}": "a caption"}}'
        if not found:
            raise ValueError(
                f"{local / 'metadata.jsonl'}: missing, and there is no metadata.csv or metadata.parquet; wanted one of them, "
                f"with one line per image: {example}{_other_captions(local)}"
            )
        for one, other in pairwise(found):
            if one.parent == other.parent:
                raise ValueError(f"{one.parent}: found {one.name} and {other.name}, wanted only one: remove the other")
        if not any(True for file in found for _ in ROWS[file.name](file, self.column)):
            raise ValueError(f"{found[0]}: empty; wanted one line per image: {example}")
        unnamed: list[str] = []
        return Dataset(_records(self.column, local, found, unnamed), {"source": f"folder {local.name}"}, unnamed)


def _other_captions(local: Path) -> str:
    """Returns what to add to the message about missing metadata: the captions may be elsewhere."""
    if in_experiment(local):
        return f"; if the checkout has one, git does not track it: `git add {local / 'metadata.jsonl'}` there"
    images = (path for path in files_in(local, "**/*") if path.suffix.lower() in IMAGES)
    beside = (end for path in images for end in ("txt", "caption") if path.with_suffix(f".{end}").is_file())
    if (end := next(beside, None)) is None:
        return ""
    return (
        f"; for captions in .{end} files beside the images, set `fetch.source.captions` to "
        f"{{name: sidecar, extensions: [{end}]}}"
    )


def _records(column: str, local: Path, files: list[Path], unnamed: list[str]) -> Iterator[Record]:
    named, inside = set(), Inside(local)
    for metadata in files:
        for where, row in ROWS[metadata.name](metadata, column):
            within, file = f"{metadata.relative_to(local)}, {where}", _file_name(row)
            if file is not None:
                named.add(os.path.abspath(metadata.parent / file))
                within = f"{within} ({file})"
            place = f"{local}/{within}"
            if problem := _problem(row, column):
                yield broken(place, problem, within)
            else:
                yield record_of(place, partial(inside.read, row["file_name"], metadata.parent), row[column], within)
    unnamed += other_images(local, named)


def _file_name(row: Any) -> str | None:
    name = row.get("file_name") if isinstance(row, dict) else None
    return name if isinstance(name, str) else None


def _problem(row: Any, column: str) -> str | None:
    """Returns why a line or row is not a record, as `kind: detail`; None if it is one."""
    if isinstance(row, ValueError):
        return str(row)
    if not isinstance(row, dict):
        return f"not a record: wanted a JSON object with `file_name` and `{column}`, got {_shown(row)}"
    has = ", ".join(f"`{key}`" for key in row) or "none"
    if "file_name" not in row:
        return f"missing image: has no key `file_name`; it has {has}"
    if not isinstance(row["file_name"], str):
        return f"missing image: `file_name` is {_shown(row['file_name'])}, wanted a path such as photos/0001.png"
    if column not in row:
        return f"no caption: has no key `{column}` (`fetch.source.captions.column`); it has {has}"
    return None


def _json_rows(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    del column
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            text = line.lstrip("\ufeff")  # the mark of a file that was appended to this one
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                row = _not_json(text, f"{error.msg} in column {error.colno}")
            except (ValueError, RecursionError) as error:
                row = _not_json(text, str(error))
            yield f"line {number}", row


def _not_json(text: str, why: str) -> ValueError:
    hint = ": write / instead of \\" if why.startswith("Invalid \\") else ""
    return ValueError(f"not JSON: wanted a JSON object, got {_shown(text.rstrip())} ({why}{hint})")


def _csv_rows(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    with open_text(path, newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            if missing := {"file_name", column} - set(rows.fieldnames or ()):
                raise ValueError(_no_columns(path, missing, list(rows.fieldnames or ())))
            for row in rows:
                whole = None not in row and None not in row.values()
                yield f"line {rows.line_num}", row if whole else _wrong_fields(row, len(rows.fieldnames or ()))
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.reader.line_num}: not valid CSV: {error}") from None


def _wrong_fields(row: dict[str | Any, str | Any], count: int) -> ValueError:
    wrong = f"{'more' if None in row else 'fewer'} fields than the header ({count}), got {_shown(list(row.values()))}"
    return ValueError(f"wrong number of fields: {wrong}; put text that has a comma in quotes")


def _parquet_rows(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as table:
            names = table.schema_arrow.names
            if missing := {"file_name", column} - set(names):
                raise ValueError(_no_columns(path, missing, names))
            check_columns(str(path), table.schema_arrow, None, column, "captions.column")
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=["file_name", column]):
                for file, caption in zip(*map(values, batch.columns), strict=True):
                    yield f"row {number}", {"file_name": file, column: caption}
                    number += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not valid Parquet: {error}") from None


def _no_columns(path: Path, missing: set[str], names: list[str]) -> str:
    return (
        f"{path}: no column {', '.join(map(repr, sorted(missing)))}; it has {', '.join(names) or 'no columns'}: "
        "rename a column, or change `fetch.source.captions.column`"
    )


def _shown(value: Any) -> str:
    """Returns a value for a message, shortened if it is long."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else f"{value[:77]}...")
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


ROWS = {"metadata.jsonl": _json_rows, "metadata.csv": _csv_rows, "metadata.parquet": _parquet_rows}
"""The reader for each metadata file; it yields the place and the content of every line or row, or a ValueError that
says, as `kind: detail`, why the line cannot be read."""
