"""Records: the split of each record, the file of captions, and the file of repeats."""

import json
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from t2i.data.chance import hash_fraction

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
REPEATS = "repeats.json"
"""The file among the embeddings that says how often training uses a record in an epoch, where that is not once."""
ENOUGH_HELDOUT = 30
"""Number of held-out records below which the metrics of a model say little."""


def readable(text: str, what: str) -> str:
    """Returns a text without byte-order marks (U+FEFF), after checking that a text encoder can read it.

    Args:
        text: the text.
        what: `caption` or `prompt`, for the message.

    Raises:
        ValueError: if the text shows nothing, has a NUL character, or is not valid Unicode; the message is `kind: detail`.
    """
    got = f"got {repr(text)[:80]}"
    if is_blank(text):
        raise ValueError(f"blank {what}: {got}")
    if "\0" in text:
        raise ValueError(f"{what} has a NUL character: {got}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{what} is not valid Unicode: {got}")
    return text.replace("\ufeff", "")


def is_blank(text: str) -> bool:
    """Returns whether a text shows nothing."""
    return all(unicodedata.category(letter) in _INVISIBLE or letter in _EMPTY for letter in text)


_INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""The Unicode categories of characters that show nothing: controls, marks such as U+FEFF and U+200B, and spaces."""
_EMPTY = {"\u034f", "\u115f", "\u1160", "\u2800", "\u3164", "\uffa0", *map(chr, range(0xFE00, 0xFE10))}
"""Letters and marks that show nothing: Hangul's fillers, the blank Braille pattern, the joiner, variation selectors."""

Prompt = Annotated[str, AfterValidator(partial(readable, what="prompt"))]
"""A prompt in params.yaml."""


def split_of(identity: str, heldout_fraction: float) -> Split:
    """Returns `heldout` for the given fraction of identities, `train` for the rest.

    The prefix `split:` makes the split independent of a source that selects records by `hash_fraction(identity)`.
    """
    return "heldout" if hash_fraction(f"split:{identity}") < heldout_fraction else "train"


def split_of_shard(name: str) -> Split | None:
    """Returns the split of a shard, from its name; None if the file is not a shard."""
    return next((split for split in SPLITS if name.startswith(f"{split}-") and name.endswith(".tar")), None)


def read_captions(path: Path) -> Iterator[dict[str, Any]]:
    """Yields `key`, `split`, `captions` and `repeats` of each record in captions.jsonl; `repeats` is 1 if a line has none.

    Raises:
        ValueError: if a line is damaged; says which line.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            yield _row(f"{path}, line {number}", line)


def _row(place: str, line: str) -> dict[str, Any]:
    try:
        row = {"repeats": 1} | json.loads(line)
        if type(row["repeats"]) is not int or row["repeats"] < 1:
            raise ValueError(f"`repeats` is {row['repeats']!r}")
        return {name: row[name] for name in ("key", "split", "captions", "repeats")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: damaged ({error!r}); run `fetch dataset` again") from None


def read_repeats(embeds: Path) -> dict[str, int]:
    """Returns how often training uses a record in an epoch, by key; a record that is not there is used once.

    Raises:
        ValueError: if the file is damaged.
    """
    path = embeds / REPEATS
    if not path.is_file():
        return {}
    try:
        repeats = json.loads(path.read_text(encoding="utf-8"))
        if not all(type(count) is int and count > 0 for count in repeats.values()):
            raise ValueError("wanted whole numbers, 1 or more")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); run `encode captions` again") from None
    return dict(repeats)
