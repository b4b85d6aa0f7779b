"""Small disks: a private tmpfs for a forked child if the machine allows it, else a limit on the size of files."""

import ctypes
import os
import resource
import signal
from pathlib import Path

_NEW_NAMESPACE_OF_MOUNTS, _NEW_NAMESPACE_OF_USERS = 0x00020000, 0x10000000


def mount(folder: Path, size: int) -> bool:
    """Mounts a tmpfs of `size` bytes over a folder, for this process only; returns whether it succeeded."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEW_NAMESPACE_OF_MOUNTS):
        if libc.unshare(_NEW_NAMESPACE_OF_MOUNTS | _NEW_NAMESPACE_OF_USERS):
            return False
        maps = {
            "setgroups": "deny",
            "uid_map": f"{user} {user} 1",
            "gid_map": f"{group} {group} 1",
        }  # without these maps, the process may not write
        try:
            for name, content in maps.items():
                Path("/proc/self", name).write_text(content)
        except OSError:
            return False
    private = 1 << 18 | 1 << 14
    libc.mount(None, b"/", None, private, None)
    return libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()) == 0


def limit_files(size: int) -> None:
    """Limits the size of every file that this process writes: a write beyond `size` bytes fails with EFBIG."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
