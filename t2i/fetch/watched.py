"""Watched folders: whether DVC sees every change below a folder. What it does not see would go stale in silence."""

import os
from pathlib import Path


def check_watched(folder: Path, parameter: str) -> None:
    """Checks that DVC sees every change below a folder; the folder itself may be a link, and so may single files.

    Args:
        folder: the folder.
        parameter: the parameter that names it, such as `fetch.local`.

    Raises:
        ValueError: if there is a linked folder, a DVC project, a broken link (other than Emacs' lock files) or a file that
            .dvcignore matches below it; names it, and says the remedy.
    """
    for at, folders, files in os.walk(folder):
        for path in (Path(at, name) for name in sorted(folders)):
            if path.is_symlink():
                raise ValueError(
                    f"{path}: a link to the folder {path.resolve()}, whose changes DVC does not see: put the folder itself "
                    f"here (`{parameter}` may itself be a link)"
                )
            if path.name == ".dvc":
                raise ValueError(f"{at}: a DVC project, whose changes this project does not see: remove {path}")
        for path in (Path(at, name) for name in sorted(files)):
            lock, broken = path.name.startswith(".#"), path.is_symlink() and not path.exists()
            if lock and not broken:
                raise ValueError(f"{path}: DVC ignores such names, which editors give to lock files: rename or remove it")
            if broken and not lock:
                raise ValueError(
                    f"{path}: a broken link to {path.readlink()}, which DVC cannot read: remove it, or restore the file"
                )
