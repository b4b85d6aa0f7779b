"""Locks: one process at a piece of work at a time. The kernel frees them with the process, so none is ever left behind."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which the kernel frees with the process.

    Raises:
        ValueError: naming the process that holds it.
    """
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ValueError(
                f"{folder}: process {holder} is at this very work; wait for it, or stop it (kill {holder})"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(folder: Path) -> int | None:
    """Returns the process that holds a folder's lock, or None; changes nothing."""
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
    """Locks the folder `partial`, which will be `out`, until its descriptor is closed.

    Args:
        held: the folder's descriptor.
        partial: the folder.
        out: its final name.

    Raises:
        ValueError: naming the process that writes it (where the kernel tells), or has just given it its final name.
    """
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(held), partial.stat())
    except (BlockingIOError, FileNotFoundError):
        ours = False
    if not ours:
        raise ValueError(f"{out}: {_locker(held)} is writing it; wait for it, or stop it")


def _locker(descriptor: int) -> str:
    """Which process holds a file's lock, where the kernel tells (Linux)."""
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        locks = ""
    found = re.search(rf"FLOCK +ADVISORY +WRITE (\d+) \S+:{os.fstat(descriptor).st_ino} ", locks)
    return f"process {found[1]}" if found else "another process"
