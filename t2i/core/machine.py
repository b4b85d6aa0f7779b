"""Machine: its cores, and how much of the memory that a process frees it keeps for its next use."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h of glibc


def keep_freed_memory(limit: int) -> None:
    """Lets this process keep freed memory up to a number of bytes; without effect where the C library is not glibc.

    By default, glibc gives large blocks back to the system, which clears them, page by page, when they are needed again. A
    network on a CPU needs new memory at every operation, and a decoder at every image.
    """
    with contextlib.suppress(OSError, AttributeError):  # the program's own C library cannot be opened, or is another one
        if sys.platform == "linux":
            mallopt = ctypes.CDLL(None).mallopt
            for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
                mallopt(option, ctypes.c_int(limit))


def cores() -> int:
    """Returns the number of cores that this process may use, rounded up; a container may have a share of the machine's."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # not Linux, or no limit
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        found = min(found, -(-quota // period))
    return found
