"""Locks: only one process at a time works in a folder. The system releases a lock when its process ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import portalocker

_ALONE = portalocker.LOCK_EX | portalocker.LOCK_NB


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder while the block runs.

    Raises:
        ValueError: if another process holds the lock; names that process.
    """
    named = folder / "process"  # a file of its own: Windows lets no other process read a locked file
    with (folder / "lock").open("a") as file:
        try:
            portalocker.lock(file, _ALONE)
        except portalocker.LockException:
            number = _number(named)
            who, how = (f"process {number}", f" with `kill {number}`") if number else ("another process", "")
            raise ValueError(f"{folder}: already in use by {who}; wait for it, or stop it{how}") from None
        named.write_text(str(os.getpid()), encoding="ascii")
        yield


def holder(folder: Path) -> int | None:
    """Returns the ID of the process that holds a folder's lock, or None; 0 if it is not known. Does not take the lock."""
    path = folder / "lock"
    if not path.exists():
        return None
    with path.open("a") as file:
        try:
            portalocker.lock(file, portalocker.LOCK_SH | portalocker.LOCK_NB)
        except portalocker.LockException:
            return _number(folder / "process")
    return None


def _number(named: Path) -> int:
    try:
        return int(named.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not written yet
        return 0


@contextmanager
def writing(partial: Path, out: Path) -> Iterator[None]:
    """Holds the lock of the folder `partial`, which will be renamed to `out`, while the block runs.

    On Windows, where a folder cannot be locked, only DVC's own locks keep two runs of a stage apart.

    Raises:
        ValueError: if another process is writing the folder, or has just renamed it.
    """
    if os.name == "nt":
        yield
        return
    held = os.open(partial, os.O_RDONLY)
    try:
        try:
            portalocker.lock(held, _ALONE)
            ours = os.path.samestat(os.fstat(held), partial.stat())
        except (portalocker.LockException, FileNotFoundError):
            ours = False
        if not ours:
            raise ValueError(f"{out}: another process is already writing it; wait for that process, or stop it")
        yield
    finally:
        os.close(held)
