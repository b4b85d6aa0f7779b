"""The work folder: where unfinished things lie, whose they are, and how a finished one takes its final name."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def work_folder(kind: str, fingerprint: str) -> Path:
    """Returns (and makes) the folder of one piece of work, `<root>/<kind>-<fingerprint>`.

    The root is T2I_WORK_DIR where that is set, else data/work of the checkout (DVC_ROOT names it in DVC's own copies too).
    """
    root = Path(os.environ.get("T2I_WORK_DIR") or Path(os.environ.get("DVC_ROOT", ".")) / "data" / "work")
    folder = root / f"{kind}-{fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fingerprint(*parts: Any) -> str:
    """Returns 16 hexadecimal digits of the sha256 of some JSON: equal for equal work, and for nothing else."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_digest() -> str:
    """Returns the sha256 of the source of every module of this package that is loaded."""
    digest = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        if name.startswith("t2i.") and getattr(module, "__file__", None):
            digest.update(name.encode() + b"\0" + Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of(folder: Path) -> str:
    """Returns one sha256 for the names and the contents of a folder's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256("".join(f"{path.relative_to(folder)} {sha256_of(path)}\n" for path in files).encode()).hexdigest()


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


def publish(folder: Path, out: Path) -> None:
    """Gives a finished folder its final name; what stood there before goes only then."""
    out.parent.mkdir(parents=True, exist_ok=True)
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = out.with_name(out.name + ".partial")  # the work folder is on another disk
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        partial.rename(out)
        shutil.rmtree(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def fresh(out: Path) -> Iterator[Path]:
    """Gives an empty folder beside `out` that takes its name when the block ends well, and vanishes when it does not."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def to_csv(rows: Sequence[Mapping[str, float | int]]) -> str:
    """Returns rows as CSV under their keys, six significant digits each, whole numbers whole."""
    lines = [",".join(rows[0])] if rows else []
    lines += [",".join(str(value) if isinstance(value, int) else f"{value:.6g}" for value in row.values()) for row in rows]
    return "\n".join(lines) + "\n"
