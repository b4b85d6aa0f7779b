"""Copies: shards of a store in a folder of this disk. The processes of the machine share it; locks on the files keep order.

FOLDER/SHA256/train-00000.tar           a copy; in use as long as a process holds a shared lock on it
FOLDER/SHA256/train-00000.tar.partial   one that is being written, by the process that holds its lock
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import portalocker

from t2i.data.digests import sha256_of
from t2i.data.storage import File, mapped

_ALONE, _TOGETHER = portalocker.LOCK_EX | portalocker.LOCK_NB, portalocker.LOCK_SH | portalocker.LOCK_NB


class Copy(NamedTuple):
    """A copy in use by this process, until its file is closed."""

    file: IO[bytes]
    content: np.ndarray
    """Its bytes, mapped. They stay valid when the file is closed and removed."""


def use(path: Path, file: File, *, verify: bool) -> Copy | None:
    """Opens a copy for use.

    Args:
        path: the copy.
        file: the size and hash that it must have.
        verify: whether to compare the hash.

    Returns:
        None if it is not there, another process is just removing it, or it was damaged and is removed now.
    """
    with suppress(FileNotFoundError, portalocker.LockException):
        opened = path.open("rb")
        try:
            portalocker.lock(opened, _TOGETHER)
            if _is_at(opened, path) and _is_right(path, file, verify=verify):
                with suppress(PermissionError):  # of another user
                    os.utime(path)
                return Copy(opened, mapped(path))
        except BaseException:
            opened.close()
            raise
        opened.close()
    return None


def _is_right(path: Path, file: File, *, verify: bool) -> bool:
    if path.stat().st_size == file.bytes and (not verify or sha256_of(path) == file.sha256):
        return True
    print(f"note: {path}: damaged; it is fetched again", file=sys.stderr)
    path.unlink()
    return False


def listed(folder: Path) -> dict[Path, os.stat_result]:
    """Returns all copies; removes unfinished ones that no process writes. Others may remove copies meanwhile."""
    found = {}
    for of_shard in _names(folder):
        for path in _names(of_shard):
            with suppress(FileNotFoundError):
                if path.suffix == ".tar":
                    found[path] = path.stat()
                else:
                    remove(path)
    return found


def _names(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return [folder / name for name in os.listdir(folder)]
    return []


def remove(path: Path) -> bool:
    """Removes a copy, or an unfinished one, unless a process uses it; returns whether it is gone."""
    try:
        with path.open("r+b") as opened:
            portalocker.lock(opened, _ALONE)
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except (portalocker.LockException, PermissionError):
        return False
    with suppress(OSError):  # another process has put something there
        path.parent.rmdir()
    return True


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yields the path at which to write a copy, for one process of this machine at a time; waits for the others."""
    partial = path.with_name(path.name + ".partial")
    with _alone(partial):
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)


def _alone(partial: Path) -> IO[bytes]:
    """Returns the open and locked file of an unfinished copy; waits for the process that writes it."""
    while True:
        with suppress(FileNotFoundError):  # its folder was just removed
            partial.parent.mkdir(parents=True, exist_ok=True)
            opened = partial.open("ab")
            with suppress(portalocker.LockException):
                portalocker.lock(opened, _ALONE)
                if _is_at(opened, partial):
                    return opened
            opened.close()
        time.sleep(0.1)


def _is_at(opened: IO[bytes], path: Path) -> bool:
    """Returns whether the file that was opened is still the one at its path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    return False
