"""Refuses to our own code what only Linux, or only POSIX, has: fcntl, resource, prctl, fork and /proc. Libraries may use them.

Python imports this file at its start if its folder is on PYTHONPATH.
"""

import builtins
import ctypes
import io
import os
import sys
from types import FrameType

OURS = ("t2i.", "stages.", "__main__", "__mp_main__")
REFUSED = ("fcntl", "resource", "pwd", "grp", "termios")
BETWEEN = ("pathlib", "os", "io", "codecs", "contextlib", "tokenize", "multiprocessing", "importlib", "sitecustomize")


def _asked_by_us():
    """Returns whether the code that called a library function, past the standard library's helpers, is ours."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in BETWEEN:
        frame = frame.f_back
    return frame is not None and f"{frame.f_globals.get('__name__', '')}.".startswith(OURS)


def _refusing(function, error, refused=lambda *arguments: True):
    def wrapper(*arguments, **options):
        if refused(*arguments) and _asked_by_us():
            raise error(f"{getattr(function, '__name__', function)}{arguments}: not on every system")
        return function(*arguments, **options)

    return wrapper


def _in_proc(path, *_):
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith("/proc")


_import = builtins.__import__


def _checked_import(name, *arguments, **options):
    if name in REFUSED and _asked_by_us():
        raise ImportError(f"{name}: not on every system")
    return _import(name, *arguments, **options)


builtins.__import__ = _checked_import
builtins.open = io.open = _refusing(io.open, FileNotFoundError, _in_proc)
for name in ("open", "stat", "listdir", "scandir", "readlink"):
    setattr(os, name, _refusing(getattr(os, name), FileNotFoundError, _in_proc))
for name in ("fork", "forkpty", "execv", "execve", "execvp"):
    setattr(os, name, _refusing(getattr(os, name), OSError))


class _Library(ctypes.CDLL):
    def __init__(self, name, *arguments, **options):
        if name is None and _asked_by_us():
            raise OSError("prctl: not on every system")
        super().__init__(name, *arguments, **options)


ctypes.CDLL = _Library
