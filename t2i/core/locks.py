"""Locks: only one process at a time works in a folder. The kernel releases a lock when its process ends."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder while the block runs.

    Raises:
        ValueError: if another process holds the lock; names that process.
    """
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()  # empty for an instant, until the process has written its number
            who, how = (f"process {holder}", f" with `kill {holder}`") if holder else ("another process", "")
            raise ValueError(f"{folder}: already in use by {who}; wait for it, or stop it{how}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(folder: Path) -> int | None:
    """Returns the ID of the process that holds a folder's lock, or None; does not take the lock."""
    path = folder / "lock"
    if not path.exists():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0)
    return None


def hold(held: int, partial: Path, out: Path) -> None:
    """Locks the folder `partial` until its descriptor is closed.

    Args:
        held: the folder's descriptor.
        partial: the folder, which will be renamed to `out`.
        out: the final path.

    Raises:
        ValueError: if another process is writing the folder, or has just renamed it; names that process if the kernel tells.
    """
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(held), partial.stat())
    except (BlockingIOError, FileNotFoundError):
        ours = False
    if not ours:
        raise ValueError(f"{out}: {_locker(held)} is already writing it; wait for that process, or stop it")


def _locker(descriptor: int) -> str:
    """Names the process that holds the lock of a file, if the kernel tells (Linux)."""
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        locks = ""
    found = re.search(rf"FLOCK +ADVISORY +WRITE (\d+) \S+:{os.fstat(descriptor).st_ino} ", locks)
    return f"process {found[1]}" if found else "another process"
