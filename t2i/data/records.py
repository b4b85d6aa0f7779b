"""Records: the split of each record, and the file of captions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from t2i.data.chance import hash_fraction

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


def plain(text: str) -> str:
    """Returns a text without byte-order marks (U+FEFF)."""
    return text.replace("\ufeff", "")


Prompt = Annotated[str, AfterValidator(plain)]
"""A prompt in params.yaml."""


def split_of(identity: str, heldout_fraction: float) -> Split:
    """Returns `heldout` for the given fraction of identities, `train` for the rest.

    The prefix `split:` makes the split independent of a source that selects records by `hash_fraction(identity)`.
    """
    return "heldout" if hash_fraction(f"split:{identity}") < heldout_fraction else "train"


def split_of_shard(name: str) -> Split | None:
    """Returns the split of a shard, from its name; None if the file is not a shard."""
    return next((split for split in SPLITS if name.startswith(f"{split}-")), None)


def read_captions(path: Path) -> Iterator[dict[str, Any]]:
    """Yields `key`, `split` and `captions` of each record in captions.jsonl.

    Raises:
        ValueError: if a line is damaged; says which line.
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
