"""Revision: the commit of this checkout, and whether what decides a run has changes that are not committed."""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from t2i.data.digests import sha256_of

_DECIDES = ("t2i", "stages", "base", "data/local", "params.yaml", "dvc.yaml", "dvc.lock", "requirements.txt")
"""What decides a run, or records it: an edited README or a new file elsewhere is no change here."""


class Revision(NamedTuple):
    """A commit, and what differs from it."""

    commit: str | None
    """None if this is no git checkout, or has no commit."""
    changed: list[str]
    """Paths that are changed, removed, or not tracked; empty if the commit has all that decides a run."""


def revision() -> Revision:
    """Returns the commit of the current folder, and what differs from it."""
    commit = _git("rev-parse", "--verify", "HEAD")
    if commit is None:
        return Revision(None, [])
    status = _git("status", "--porcelain", "--no-renames", "-z", "--", *_DECIDES) or ""
    return Revision(commit.strip(), sorted(entry[3:] for entry in status.split("\0") if entry))


def committed_text(path: Path) -> str | None:
    """Returns the content of a file in the last commit; None if it has none, or there is no commit."""
    return _git("show", f"HEAD:./{path.as_posix()}")


def code_digest_of(files: Mapping[str, str]) -> str:
    """Returns one sha256 for the names and the sha256 of files."""
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(files.items())).encode()).hexdigest()


def code_files() -> dict[str, str]:
    """Returns the sha256 of every file of the code in the current folder, by path."""
    files = sorted(path for folder in ("stages", "t2i") for path in Path(folder).rglob("*") if path.suffix in (".py", ".html"))
    return {path.as_posix(): sha256_of(path) for path in files}


def _git(*words: str) -> str | None:
    """Returns what a git command prints, or None if it fails."""
    try:
        return subprocess.run(["git", *words], capture_output=True, encoding="utf-8", errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
