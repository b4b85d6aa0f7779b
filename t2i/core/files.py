"""Files: the work folder for unfinished results, and atomic writes that give a finished result its final name."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from t2i.core.locks import writing

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a write when the disk is full, or a quota or the limit on file size (`ulimit -f`) is reached."""


def in_checkout(path: str) -> Path:
    """Returns a path that is relative to the checkout, which DVC_ROOT names, also in DVC's copies of it; absolute ones stay."""
    return Path(os.environ.get("DVC_ROOT", ".")) / path


def work_root() -> Path:
    """Returns T2I_WORK_DIR if it is set, else data/work of the checkout."""
    return Path(os.environ.get("T2I_WORK_DIR") or in_checkout("data/work"))


def work_folder(kind: str, fingerprint: str) -> Path:
    """Creates and returns the folder of one piece of work, `<root>/<kind>-<fingerprint>`."""
    folder = work_root() / f"{kind}-{fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_in_repository(outputs: Path) -> None:
    """Checks that a folder of outputs is not a link that leaves the checkout: DVC would refuse its content after the work.

    Raises:
        ValueError: if it is; says how to use another disk.
    """
    if outputs.is_symlink() and not outputs.resolve().is_relative_to(Path.cwd().resolve()):
        raise ValueError(
            f"{outputs}: a link to {outputs.resolve()}, where DVC stores no outputs: replace it by a folder; to keep the data "
            "on another disk, run `dvc config --local cache.dir FOLDER`, and set T2I_WORK_DIR"
        )


def publish(folder: Path, out: Path) -> None:
    """Moves a finished folder to `out`; the old content of `out` is deleted only after the move succeeds."""
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
    """Renames a folder to `out`; if that fails, the old `out` is restored."""
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
    """Yields an empty folder, renamed to `out` on success and deleted on error.

    Args:
        out: the final path; the folder is created beside it.
        size: number of bytes that will be written, if known; 0 otherwise.

    Raises:
        ValueError: if the disk is full, or another process is writing to `out`.
    """
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with writing(partial, out):
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            with _room(out, size):
                yield partial
            publish(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def whole(path: Path, size: int = 0) -> Iterator[Path]:
    """Yields the path of a temporary file, renamed to `path` on success and deleted on error."""
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
    """Raises a ValueError if the disk has fewer than `size` free bytes, or if the block fails because the disk is full."""
    if size > free_bytes(path):
        raise ValueError(_no_room(path, size, os.strerror(errno.ENOSPC)))
    try:
        yield
    except (OSError, SafetensorError) as error:
        # copytree and safetensors report the operating system's error only as text.
        full = [code for code in _FULL if f"[Errno {code}]" in str(error) or f"(os error {code})" in str(error)]
        if not full:
            raise
        raise ValueError(_no_room(path, size, os.strerror(full[0]))) from None


def _no_room(path: Path, size: int, reason: str) -> str:
    needed = f"{in_bytes(size)} needed, " if size else ""
    free = in_bytes(free_bytes(path))
    return f"{path}: {reason}: {needed}{free} free on this disk; free some space, then run the same command again to continue"


def flush(path: Path) -> None:
    """Waits until the content of a file, or the list of names in a folder, is on disk (fsync).

    Windows flushes only files that are open for writing, and no folders.
    """
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Returns the number of free bytes on the disk that holds a path; the path need not exist."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def size_of(folder: Path) -> int:
    """Returns the total size of the files in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def in_bytes(size: int) -> str:
    """Returns a number of bytes as text with a unit, such as `1.5 GB`."""
    rounded = float(f"{size:.3g}")
    power = min(4, (len(f"{rounded:.0f}") - 1) // 3)
    return f"{rounded / 1000**power:g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def write_text(path: Path, text: str) -> None:
    """Writes a small text file atomically."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with sorted keys, atomically."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def to_csv(rows: Sequence[Mapping[str, float | int]]) -> str:
    """Returns rows as CSV with a header; integers are written in full, floats with six significant digits."""
    lines = [",".join(rows[0])] if rows else []
    lines += [",".join(str(value) if isinstance(value, int) else f"{value:.6g}" for value in row.values()) for row in rows]
    return "\n".join(lines) + "\n"
