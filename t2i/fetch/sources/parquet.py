"""Source `parquet`: Parquet files in a folder, with the images inside or beside them.

A cell in the image column is an encoded image, a struct of `bytes` and `path` as the library `datasets` writes it, or a path
inside the folder. Files are read a few rows at a time. Memory holds these rows and the page that contains them, which is at
most a row group.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from t2i.core.params import Section
from t2i.fetch.columns import check_columns, values
from t2i.fetch.inside import Inside
from t2i.fetch.source import Dataset, Record, matching, other_images, record_of

_ROWS = 16
"""Number of rows, and so of images, in memory at once."""


class Source(Section):
    """`fetch.source` with `name: parquet`; the folder is `fetch.local`, so that DVC tracks its changes."""

    reads_local: ClassVar[bool] = True
    name: Literal["parquet"]
    files: str
    """Pattern for the files to read, such as `*.parquet` or `**/train-*.parquet`."""
    image_column: str
    """Column of the images: bytes, a struct of `bytes` and `path`, or a path."""
    caption_column: str
    """Column of the captions: text, or a list of texts."""


def open_source(section: Source, local: Path) -> Dataset:
    """Returns the rows of every file, in the order of the file names.

    Args:
        section: the section `fetch.source`.
        local: the folder.

    Raises:
        ValueError: if no file matches the pattern, a file is not valid Parquet, or a column is missing or has a wrong type.
    """
    unnamed: list[str] = []
    description = {"source": f"Parquet files of {local.name}", "files": section.files}
    return Dataset(_records(section, local, matching(local, section.files), unnamed), description, unnamed)


def _records(section: Source, local: Path, files: list[Path], unnamed: list[str]) -> Iterator[Record]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    columns, named, inside = [section.image_column, section.caption_column], set(), Inside(local)
    for path in files:
        number = 0
        try:
            # Without these, pyarrow reads ahead through the whole file.
            with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True) as table:
                check_columns(str(path), table.schema_arrow, section.image_column, section.caption_column)
                for batch in table.iter_batches(batch_size=_ROWS, columns=columns, use_threads=False):
                    images, captions = (values(batch.column(name)) for name in columns)
                    for image, caption in zip(images, captions, strict=True):
                        if (name := _path(image)) is not None:
                            named.add(os.path.abspath(local / name))
                        yield record_of(f"{path.relative_to(local)}, row {number}", partial(_content, inside, image), caption)
                        number += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not valid Parquet after row {number}: {error}; download the file again") from None
    unnamed += other_images(local, named)


def _path(cell: Any) -> str | None:
    """Returns the path in a cell that has no bytes."""
    if isinstance(cell, dict):
        cell = cell.get("path") if cell.get("bytes") is None else None
    return cell if isinstance(cell, str) else None


def _content(inside: Inside, cell: Any) -> bytes:
    if (name := _path(cell)) is not None:
        return inside.read(name)
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is None:
        raise ValueError("missing image: null")
    if not isinstance(content, bytes):
        raise ValueError(f"missing image: got {content!r:.60}, wanted the bytes of an image file")
    return content
