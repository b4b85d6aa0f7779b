"""Records: what names them on the way, and which split they fall in."""

import hashlib
from typing import Literal

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
