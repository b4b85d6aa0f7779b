"""Locks: only one process at a time works in a folder. The system releases a lock when its process ends."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import portalocker

_ALONE = portalocker.LOCK_EX | portalocker.LOCK_NB
_TOGETHER = portalocker.LOCK_SH | portalocker.LOCK_NB


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds the lock of a folder while the block runs: alone, or `shared` with others that share it.

    Raises:
        ValueError: if another process holds the lock; names that process.
    """
    named = folder / "process"  # a file of its own: Windows lets no other process read a locked file
    with (folder / "lock").open("a+") as file:  # NFS shares a lock only of a file that can be read
        try:
            portalocker.lock(file, _TOGETHER if shared else _ALONE)
        except portalocker.LockException:
            raise ValueError(f"{folder}: already in use by {_holder(named)}") from None
        named.write_text(f"{os.getpid()} {platform.node()}", encoding="utf-8")
        yield


def _holder(named: Path) -> str:
    """Returns the process that holds a lock, and what to do, for a message."""
    number, host = _named(named)
    if not number:
        return "another process; wait for it, or stop it"
    where = "" if host == platform.node() else f" on {host}"
    return f"process {number}{where}; wait for it, or stop it with `kill {number}`{where}"


def holder(folder: Path) -> int | None:
    """Returns the ID of a process that holds a folder's lock, alone or shared, or None; 0 if it is not known.

    Holds the lock for an instant if nobody else does.
    """
    path = folder / "lock"
    if not path.exists():
        return None
    with path.open("a") as file:
        try:
            portalocker.lock(file, _ALONE)
        except portalocker.LockException:
            return _named(folder / "process")[0]
    return None


def _named(named: Path) -> tuple[int, str]:
    """Returns the ID and the host of the process that a file names; 0 if there is none yet."""
    try:
        number, _, host = named.read_text(encoding="utf-8").partition(" ")
        return int(number), host
    except (OSError, ValueError):
        return 0, ""


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
