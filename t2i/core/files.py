"""The work folder: where unfinished things lie, whose they are, and how a finished one takes its final name."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from t2i.core.locks import hold

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write fails with where the disk, a quota or the limit of a file's size (`ulimit -f`) is reached."""


def work_root() -> Path:
    """Returns T2I_WORK_DIR where that is set, else data/work of the checkout (DVC_ROOT names it in DVC's own copies too)."""
    return Path(os.environ.get("T2I_WORK_DIR") or Path(os.environ.get("DVC_ROOT", ".")) / "data" / "work")


def work_folder(kind: str, fingerprint: str) -> Path:
    """Returns (and makes) the folder of one piece of work, `<root>/<kind>-<fingerprint>`."""
    folder = work_root() / f"{kind}-{fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def publish(folder: Path, out: Path) -> None:
    """Gives a finished folder its final name; what stood there before goes only then."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        _swap(folder, out)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = out.with_name(out.name + ".partial")  # the work folder is on another disk
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with _room(out, size_of(folder)):
                shutil.copytree(folder, partial)
            _swap(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder)


def _swap(folder: Path, out: Path) -> None:
    """Renames a folder to `out`; where that fails, what was there before is there again."""
    old = out.with_name(out.name + ".old")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def fresh(out: Path, size: int = 0) -> Iterator[Path]:
    """Gives an empty folder beside `out` that takes its name when the block ends well, and vanishes when it does not.

    Args:
        out: the final name.
        size: bytes that will be written, as far as is known before.

    Raises:
        ValueError: where the disk is full, or another process is writing the same.
    """
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    held = os.open(partial, os.O_RDONLY)
    try:
        hold(held, partial, out)
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            with _room(out, size):
                yield partial
            publish(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(held)


@contextmanager
def whole(path: Path, size: int = 0) -> Iterator[Path]:
    """Gives the name of a file beside `path` that takes its name when the block ends well: `fresh` for a single file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with _room(path, size):
            yield partial
            flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _room(path: Path, size: int) -> Iterator[None]:
    """Refuses before writing, and explains after it, a disk that has no room."""
    if size > free_bytes(path):
        raise ValueError(_no_room(path, size, os.strerror(errno.ENOSPC)))
    try:
        yield
    except (OSError, SafetensorError) as error:
        # copytree and safetensors give the operating system's error as text.
        full = [code for code in _FULL if f"[Errno {code}]" in str(error) or f"(os error {code})" in str(error)]
        if not full:
            raise
        raise ValueError(_no_room(path, size, os.strerror(full[0]))) from None


def _no_room(path: Path, size: int, reason: str) -> str:
    needed = f"{in_bytes(size)} needed, " if size else ""
    free = in_bytes(free_bytes(path))
    return f"{path}: {reason}: {needed}{free} free on its disk; make room, and run the same command again: it goes on"


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Returns the bytes that are free on the disk where a path lies, or would."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def size_of(folder: Path) -> int:
    """Returns the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def in_bytes(size: int) -> str:
    """Returns a number of bytes with a unit: `1.5 GB`."""
    rounded = float(f"{size:.3g}")
    power = min(4, (len(f"{rounded:.0f}") - 1) // 3)
    return f"{rounded / 1000**power:g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def to_csv(rows: Sequence[Mapping[str, float | int]]) -> str:
    """Returns rows as CSV under their keys, six significant digits each, whole numbers whole."""
    lines = [",".join(rows[0])] if rows else []
    lines += [",".join(str(value) if isinstance(value, int) else f"{value:.6g}" for value in row.values()) for row in rows]
    return "\n".join(lines) + "\n"
