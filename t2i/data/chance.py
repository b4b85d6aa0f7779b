"""Chance: seeds and fractions that are functions of a name alone, so that nothing drawn depends on what was drawn before."""

import hashlib


def derived_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed that any change of any part changes altogether."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def hash_fraction(identity: str) -> float:
    """Returns a number in [0, 1) that depends on the identity alone: the split's and the selection's only chance."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
