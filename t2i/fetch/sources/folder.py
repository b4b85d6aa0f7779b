"""Source `folder`: a folder of images with a metadata file, in the Hub's imagefolder format.

The file is metadata.jsonl, metadata.csv or metadata.parquet. Each line or row has `file_name`, a path inside the folder, and a
caption: `{"file_name": "0001.png", "text": "a red heart"}`. In JSON and Parquet, the caption may be a list of captions.
"""

import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from t2i.core.params import Section
from t2i.fetch.source import Dataset, Record, read_inside, record_of


class Source(Section):
    """`fetch.source` with `name: folder`; the folder is `fetch.local`, so that DVC tracks its changes."""

    name: Literal["folder"]
    caption_column: str
    """Key or column of the captions in the metadata file."""


def open_source(section: Source, local: Path) -> Dataset:
    """Returns the images that the metadata file names, with their captions.

    Args:
        section: the section `fetch.source`.
        local: the folder.

    Raises:
        ValueError: if there is not exactly one metadata file, or one of its lines cannot be read; names the line.
    """
    found = [local / name for name in ROWS if (local / name).is_file()]
    if not found:
        raise ValueError(
            f"{local / 'metadata.jsonl'}: missing, and there is no metadata.csv or metadata.parquet; wanted one of them, "
            f'with one line per image: {{"file_name": "0001.png", "{section.caption_column}": "a caption"}}'
        )
    if len(found) > 1:
        raise ValueError(f"{local}: found {' and '.join(path.name for path in found)}, wanted only one: remove the others")
    return Dataset(_records(section, found[0]), {"source": f"folder {local.name}"})


def _records(section: Source, metadata: Path) -> Iterator[Record]:
    for place, row in ROWS[metadata.name](metadata, section.caption_column):
        try:
            file, caption = row["file_name"], row[section.caption_column]
            if not isinstance(file, str):
                raise TypeError(f"`file_name` is {file!r}")
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{metadata.parent / place}: wanted `file_name` and `{section.caption_column}` "
                f"(`fetch.source.caption_column`), got {_shown(row)} ({error!r})"
            ) from None
        yield record_of(f"{place} ({file})", partial(read_inside, metadata.parent, file), caption)


def _json_rows(path: Path, caption_column: str) -> Iterator[tuple[str, Any]]:
    del caption_column
    # A byte that is not UTF-8 becomes a lone surrogate. File names may have them; screening rejects captions that have one.
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number}: wanted a JSON object, got {_shown(line.rstrip())} ({error})"
                ) from None
            yield f"{path.name}, line {number}", row


def _csv_rows(path: Path, caption_column: str) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
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
                yield f"{path.name}, line {rows.line_num}", row
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
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=["file_name", caption_column]):
                for row in batch.to_pylist():
                    yield f"{path.name}, row {number}", row
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
