"""Source `hub`: a dataset of the Hugging Face Hub, or a local one in a form that `datasets` loads, pinned to a commit."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from t2i import params
from t2i.records import Dataset, Record, content_key


class Params(params.Params):
    """`fetch.source` with `name: hub`."""

    name: Literal["hub"]
    id: str
    """`owner/name` on the Hub, or a folder that `datasets.load_dataset` reads."""
    config: str | None
    """Configuration of the dataset; null where it has one only."""
    split: str
    """Split to take, such as `train`."""
    revision: str | None
    """Branch, tag or commit; it is resolved to a commit, which the run records. null: the default branch."""
    image_column: str
    """Column of the images."""
    caption_column: str
    """Column of the captions: a text, or a list of texts."""


def load(params: Params, local: Path) -> Dataset:
    """Returns a dataset's images as they were uploaded, and their captions.

    Args:
        params: the section `fetch.source`.
        local: not used.

    Raises:
        ValueError: where the dataset or a column is not there.
    """
    import datasets

    del local
    commit = None if Path(params.id).exists() else _commit(params)
    try:
        table = datasets.load_dataset(params.id, params.config, split=params.split, revision=commit)
    except (OSError, ValueError) as error:
        raise ValueError(f"`fetch.source`: {params.id}: {error}") from None
    for column in (params.image_column, params.caption_column):
        if column not in table.column_names:
            raise ValueError(f"`fetch.source`: {params.id} has no column {column!r}; it has {', '.join(table.column_names)}")
    table = table.cast_column(params.image_column, datasets.Image(decode=False))
    return Dataset(_records(table, params), {"source": params.id, "split": params.split, "commit": commit})


def _commit(params: Params) -> str | None:
    """The commit that a revision stands for; offline, the revision itself, which the cache must then hold."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return params.revision
    try:
        commit: str | None = HfApi().dataset_info(params.id, revision=params.revision, timeout=20).sha
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`fetch.source.id` {params.id!r}, revision {params.revision!r}: not to be had from the Hub ({reason}); "
            "check the name, the network, and HF_TOKEN for a private or gated dataset; HF_HUB_OFFLINE=1 uses what is on disk"
        ) from None
    return commit


def _records(table: Any, params: Params) -> Iterator[Record]:
    for row in range(len(table)):
        image = _image(table, row, params.image_column)
        key, caption = content_key(image), table[row][params.caption_column]
        captions = tuple(caption) if isinstance(caption, list) else (caption,)
        yield Record(key, key, partial(_image, table, row, params.image_column), _extension(image), captions)


def _image(table: Any, row: int, column: str) -> bytes:
    cell = table[row][column]
    content = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
    return bytes(content)


def _extension(image: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        return {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}.get(opened.format or "", "png")
