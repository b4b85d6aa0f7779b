"""Chance: seeds and fractions that depend only on their arguments, so no draw depends on an earlier draw."""

import hashlib


def derived_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed, the hash of its arguments; any changed argument gives an unrelated seed."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def hash_fraction(identity: str) -> float:
    """Returns the hash of an identity as a number in [0, 1); splits and selections of records depend on it."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
