"""Records: what names them on the way, and which split they fall in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from t2i.data.chance import hash_fraction

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


def split_of(identity: str, heldout_fraction: float) -> Split:
    """Returns `heldout` for the stated fraction of identities, `train` for the rest.

    The salt keeps this split independent of a source's own selection by hash_fraction(identity).
    """
    return "heldout" if hash_fraction(f"split:{identity}") < heldout_fraction else "train"


def split_of_shard(name: str) -> Split | None:
    """Returns the split that a shard holds, by its name; None for a file that is no shard."""
    return next((split for split in SPLITS if name.startswith(f"{split}-")), None)


def read_captions(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of captions.jsonl: `key`, `split` and `captions` of each record.

    Raises:
        ValueError: naming the line that is damaged.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            yield _row(f"{path}, line {number}", line)


def _row(place: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        return {name: row[name] for name in ("key", "split", "captions")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: damaged ({error!r}); run `fetch dataset` again") from None
