"""Digests: hashes of files, folders, code and pieces of work, as hexadecimal digits."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
"""The folder t2i."""


def fingerprint(*parts: Any) -> str:
    """Returns the first 16 hexadecimal digits of the sha256 of its arguments as JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_digest(files: Iterable[str]) -> str:
    """Returns one sha256 for source files of this package.

    Args:
        files: paths relative to t2i/, such as `train/ema.py`.
    """
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + (PACKAGE / name).read_bytes())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of(folder: Path) -> str:
    """Returns one sha256 for the names and contents of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256("".join(f"{path.relative_to(folder)} {sha256_of(path)}\n" for path in files).encode()).hexdigest()
