"""Source `folder`: a folder of images with a metadata.jsonl, as the Hub's imagefolder has it.

Each line of metadata.jsonl is `{"file_name": "0001.png", "text": "a red heart"}`; a caption may be a list of them.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from t2i import params
from t2i.records import Dataset, Record, content_key

_EXTENSIONS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}


class Params(params.Params):
    """`fetch.source` with `name: folder`; the folder itself is `fetch.local`, so that DVC sees its changes."""

    name: Literal["folder"]
    caption_column: str
    """Key of the caption in metadata.jsonl."""


def load(params: Params, local: Path) -> Dataset:
    """Returns the images that metadata.jsonl names.

    Args:
        params: the section `fetch.source`.
        local: the folder.

    Raises:
        ValueError: naming the line that cannot be used, and why.
    """
    return Dataset(_records(params, local), {"source": f"folder {local.name}"})


def _records(params: Params, local: Path) -> Iterator[Record]:
    metadata = local / "metadata.jsonl"
    if not metadata.is_file():
        raise ValueError(f'{metadata}: missing; it wants a line an image: {{"file_name": "0001.png", "text": "a caption"}}')
    for number, line in enumerate(metadata.open(encoding="utf-8"), start=1):
        place = f"{metadata}, line {number}"
        try:
            entry = json.loads(line)
            file, caption = local / entry["file_name"], entry[params.caption_column]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{place}: wanted `file_name` and `{params.caption_column}`, got {line.rstrip()[:80]!r} ({error!r})"
            ) from None
        extension = _EXTENSIONS.get(file.suffix.lower())
        if extension is None or not file.is_file():
            reason = "no such file" if extension else f"not one of {', '.join(_EXTENSIONS)}"
            raise ValueError(f"{place}: {file}: {reason}")
        key = content_key(file.read_bytes())
        captions = tuple(caption) if isinstance(caption, list) else (caption,)
        yield Record(key, key, partial(file.read_bytes), extension, captions)
