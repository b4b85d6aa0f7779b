"""Memory: how much of what a process frees it keeps for its next use."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h of glibc


def keep_freed_memory(limit: int) -> None:
    """Lets this process keep freed memory up to a number of bytes; without effect where the C library is not glibc.

    By default, glibc gives large blocks back to the system, which clears them, page by page, when they are needed again. A
    network on a CPU needs new memory at every operation, and a decoder at every image.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            library.mallopt(option, ctypes.c_int(limit))
