"""Records: what names them on the way, and which split they fall in."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


def hash_fraction(identity: str) -> float:
    """Returns a number in [0, 1) that depends on the identity alone: the split's and the selection's only chance."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64


def split_of(identity: str, heldout_fraction: float) -> Split:
    """Returns `heldout` for the stated fraction of identities, `train` for the rest.

    The salt keeps this split independent of a source's own selection by hash_fraction(identity).
    """
    return "heldout" if hash_fraction(f"split:{identity}") < heldout_fraction else "train"


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
