"""Source `hub`: a dataset on the Hugging Face Hub, pinned to a commit, or a local dataset that the library `datasets` loads."""

import os
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

from pydantic import Field

from t2i.core.params import Section
from t2i.fetch.columns import check_columns
from t2i.fetch.hub import Repository, asking, why
from t2i.fetch.source import IMAGES, Dataset, Record, is_inside, other_images, record_of


class Source(Section):
    """`fetch.source` with `name: hub`."""

    name: Literal["hub"]
    id: str | None
    """`owner/name` on the Hub; null: the folder `fetch.local`, in a format that `datasets.load_dataset` reads."""
    config: str | None
    """Configuration of the dataset; null if it has only one."""
    split: str
    """Split to read, such as `train`."""
    revision: str | None
    """Branch, tag or commit; null: the default branch. It is resolved to a commit, which is written to dataset.json."""
    image_column: str
    """Column of the images."""
    caption_column: str
    """Column of the captions: text, or a list of texts."""
    streaming: bool
    """Whether to read the rows directly from the network, for a dataset larger than the disk: only the kept records are stored.
    If false, the whole split is first downloaded to the cache of `datasets`. A local folder is always read directly."""
    max_rows: int | None = Field(ge=1)
    """Number of rows to read from the start of the split; null: all. Streaming downloads every one of these rows once, even
    if it is not kept."""

    @property
    def reads_local(self) -> bool:
        """Whether it reads a folder: `fetch.local`, or one inside it."""
        return self.id is None or Path(self.id).exists()


def open_source(section: Source, local: Path) -> Dataset:
    """Returns the images of a dataset as they were uploaded, with their captions.

    Each row is read once, so streaming downloads the data once. Memory holds what `datasets` buffers (a row group of a Parquet
    file). The disk holds the spool of `fetch dataset`: for n rows and at most k records, about k * (1 + ln(n / k)) images.

    Args:
        section: the section `fetch.source`.
        local: the folder to read if `id` is null.

    Raises:
        ValueError: if the dataset or a column does not exist, or the stream fails.
    """
    import datasets

    folder = _folder(section, local)
    asked = None if folder else Repository("fetch.source.id", str(section.id), section.revision, "dataset")
    commit = _commit(asked) if asked else None
    name = f"folder {folder.name}" if folder else section.id
    try:
        rows, files = _rows(section, commit, folder)
        schema = _schema(rows)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"`fetch.source`: {name}: {why(error, asked)}") from None
    check_columns(f"`fetch.source`: {name}", schema, section.image_column, section.caption_column)
    if rows.features and isinstance(rows.features[section.image_column], datasets.Image):
        rows = rows.cast_column(section.image_column, datasets.Image(decode=False))
    unnamed: list[str] = []
    description = {"source": name, "split": section.split, "commit": commit}
    return Dataset(_records(rows, files, section, folder, asked, unnamed), description, unnamed)


def _rows(section: Source, commit: str | None, folder: Path | None) -> tuple[Any, dict[str, list[str]]]:
    """Returns the rows of the split, and the files of each split if the rows are streamed.

    A local folder is always streamed, with an empty cache: `datasets` would take what it cached, the rows or the columns, for
    another content of the same path and time.
    """
    import datasets
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    WebDataset.DECODERS.pop("pth", None)  # it would unpickle .pth members of tars, even if their column is not read
    if not section.streaming and not folder:
        return datasets.load_dataset(section.id, section.config, split=section.split, revision=commit), {}
    with tempfile.TemporaryDirectory() as empty:
        cache, named = (empty, str(folder)) if folder else (None, section.id)
        builder = datasets.load_dataset_builder(named, section.config, revision=commit, cache_dir=cache)
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0  # these threads would decode images, even with Image(decode=False)
        rows = _sliced(builder, section.split) if folder else builder.as_streaming_dataset(split=section.split)
    return rows, {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}


def _sliced(builder: Any, split: str) -> Any:
    """Returns the streamed rows of a split, or of slices such as `train[:10%]+test`, for which all rows are counted first."""
    from datasets import ReadInstruction, concatenate_datasets

    if re.fullmatch(r"\w+(\.\w+)*", split) and split != "all":
        return builder.as_streaming_dataset(split=split)
    streams = builder.as_streaming_dataset()
    counts = {name: sum(1 for _ in stream.with_format("arrow")) for name, stream in streams.items()}
    slices = ReadInstruction.from_spec("+".join(streams) if split == "all" else split).to_absolute(counts)
    return concatenate_datasets([streams[one.splitname].skip(one.from_).take(one.to - one.from_) for one in slices])


def _schema(rows: Any) -> Any:
    """Returns the Arrow schema of the rows; without one (CSV, JSON), that of the first row, with its nulls as text."""
    import pyarrow

    if rows.features:
        return rows.features.arrow_schema
    first: dict[str, Any] = next(iter(rows), {})
    return pyarrow.Table.from_pylist([{name: "" if cell is None else cell for name, cell in first.items()}]).schema


def _folder(section: Source, local: Path) -> Path | None:
    if section.id is None:
        return local
    if Path(section.id).exists() and not Path(section.id).resolve().is_relative_to(local.resolve()):
        raise ValueError(
            f"`fetch.source.id` {section.id!r} is a folder outside `fetch.local` ({local}), where DVC tracks no changes: "
            "set `fetch.local` to that folder, and `fetch.source.id: null`"
        )
    return Path(section.id) if Path(section.id).exists() else None


def _commit(dataset: Repository) -> str | None:
    """Returns the commit of a revision; offline, the revision itself, which must then be in the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return dataset.revision
    with asking(dataset):
        info = HfApi().dataset_info(dataset.name, revision=dataset.revision)
        if info.gated:
            HfApi().auth_check(dataset.name, repo_type="dataset")
        commit: str | None = info.sha
    return commit


def _records(
    rows: Any,
    files: dict[str, list[str]],
    section: Source,
    folder: Path | None,
    asked: Repository | None,
    unnamed: list[str],
) -> Iterator[Record]:
    number, named = 0, set()
    try:
        for number, row in enumerate(islice(rows, section.max_rows)):
            cell = row.get(section.image_column)
            cell = cell if isinstance(cell, dict) else {"path" if isinstance(cell, str) else "bytes": cell}
            if folder and cell.get("bytes") is None and cell.get("path"):
                named.add(cell["path"] if "://" in cell["path"] else os.path.abspath(folder / cell["path"]))
            yield record_of(f"{section.split}, row {number}", partial(_content, cell, folder), row.get(section.caption_column))
    except Exception as error:
        place = f"{section.id or folder}, near row {number} of {section.split}"
        raise ValueError(f"`fetch.source`: {place}: {why(error, asked)}") from None
    if folder and section.max_rows is None and section.split in files:  # else only some rows were read
        unnamed += _others(folder, section.split, files, named)


def _others(folder: Path, split: str, files: dict[str, list[str]], named: set[str]) -> Iterator[str]:
    """Yields the images that no row names, in the folder, except in other splits, and in the zips of the split."""
    elsewhere = {os.path.abspath(file) for name, some in files.items() if name != split for file in some}
    yield from other_images(folder, named | elsewhere)
    for archive in (file for file in files[split] if file.endswith(".zip")):
        with ZipFile(archive) as opened:
            for name in opened.namelist():
                if name.lower().endswith(tuple(IMAGES)) and f"zip://{name}::{archive}" not in named:
                    yield f"{os.path.relpath(archive, os.path.realpath(folder))}, {name}"


def _content(cell: dict[str, Any], folder: Path | None) -> bytes:
    """Returns the image file of a cell, from its bytes, or from the path or URL that it names."""
    import fsspec

    content, path = cell.get("bytes"), cell.get("path")
    if content is not None:
        if not isinstance(content, bytes):
            raise ValueError(f"missing image: got {content!r:.60}, wanted the bytes or the path of an image file")
        return content
    if not path:
        raise ValueError("missing image: null")
    if not _trusted(path, folder):
        raise ValueError(f"missing image: {path!r} is outside the dataset")
    try:
        with fsspec.open(path if "://" in path else str((folder or Path()) / path), "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        raise ValueError(f"missing image: no such file {path!r}") from None


def _trusted(path: str, folder: Path | None) -> bool:
    """Returns whether a path is inside the dataset: in its folder, on the Hub, or in the cache of the Hub or of `datasets`."""
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    if folder:
        archived = re.fullmatch(r"zip://[^:]*::(/[^:]+)", path)
        return is_inside(folder / (archived[1] if archived else path), folder) and ("://" not in path or archived is not None)
    if "://" in path:
        return re.fullmatch(r"(zip://[^:]*::)?hf://datasets/[^:]+", path) is not None
    roots = [Path(HF_HUB_CACHE), Path(HF_DATASETS_CACHE)]
    absolute = (roots[0] / path).absolute()  # not resolved: files in the Hub's cache are links
    return ".." not in absolute.parts and any(absolute.is_relative_to(root.absolute()) for root in roots)
