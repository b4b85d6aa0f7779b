"""Records: what a source yields, what names them, and which split they fall in."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


@dataclass(frozen=True)
class Record:
    """One captioned image as its source has it."""

    identity: str
    """What the split hangs on: new records, or another style of the same ones, move none."""
    key: str
    """Its name on disk: lower case, without `.` or `/`."""
    read: Callable[[], bytes]
    """Gives the encoded image file, untouched; called only for the records that are kept."""
    extension: str
    """`png`, `jpg` or `webp`."""
    captions: tuple[Any, ...]
    """One or more captions, as the source has them: what is no text is refused where they are written down."""


@dataclass(frozen=True)
class Dataset:
    """What a source gives: its records, and what a model card says of them."""

    records: Iterator[Record]
    description: dict[str, Any]
    """Source, version or commit, licence, attribution: JSON."""


def content_key(image: bytes) -> str:
    """Returns the first 16 hexadecimal digits of the sha256 of an image's bytes."""
    return hashlib.sha256(image).hexdigest()[:16]


def hash_fraction(identity: str) -> float:
    """Returns a number in [0, 1) that depends on the identity alone: the split's and the selection's only chance."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64


def split_of(identity: str, heldout_fraction: float) -> Split:
    """Returns `heldout` for the stated fraction of identities, `train` for the rest.

    The salt keeps this split independent of a source's own selection by hash_fraction(identity).
    """
    return "heldout" if hash_fraction(f"split:{identity}") < heldout_fraction else "train"
