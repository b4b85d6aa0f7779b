"""Watched folders: whether DVC sees every change below a folder. What it does not see would go stale in silence."""

import os
from collections.abc import Callable
from pathlib import Path

UNSEEN = (".git", ".hg")
"""Folders that DVC ignores everywhere, so nothing is read from them."""

_HARMLESS = {"", ".bak", ".db", ".ini", ".log", ".md", ".swp", ".tmp"}
"""The ends of the names of files that no stage reads, such as .DS_Store and Thumbs.db."""


def check_watched(folder: Path, parameter: str) -> None:
    """Checks that DVC sees every change below a folder; the folder itself may be a link, and so may single files.

    Args:
        folder: the folder.
        parameter: the parameter that names it, such as `fetch.local`.

    Raises:
        ValueError: if there is a linked folder, a DVC project, a broken link (other than Emacs' lock files) or a file for a
            stage that .dvcignore matches below it; names it, and says the remedy.
    """
    ignored = _ignored()
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in UNSEEN)
        for path in (Path(at, name) for name in folders):
            if path.is_symlink():
                raise ValueError(
                    f"{path}: a link to the folder {path.resolve()}, whose changes DVC does not see: put the folder itself "
                    f"here (`{parameter}` may itself be a link)"
                )
            if path.name == ".dvc":
                raise ValueError(f"{at}: a DVC project, whose changes this project does not see: remove {path}")
        for path in (Path(at, name) for name in sorted(files)):
            broken = path.is_symlink() and not path.exists()
            if broken and not path.name.startswith(".#"):
                raise ValueError(
                    f"{path}: a broken link to {path.readlink()}, which DVC cannot read: remove it, or restore the file"
                )
            if not broken and not path.name.endswith("~") and path.suffix.lower() not in _HARMLESS and ignored(path):
                raise ValueError(
                    f"{path}: a pattern in .dvcignore matches it (`dvc check-ignore -d {path}` shows which), so DVC does not "
                    "see its changes: change the pattern, or remove the file"
                )


def _ignored() -> Callable[[Path], bool]:
    """Returns whether .dvcignore of the checkout excludes a file; nothing is excluded outside of a checkout."""
    here = Path.cwd()
    root = next((str(folder) for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    if root is None:
        return lambda path: False
    from dvc.fs import localfs
    from dvc.ignore import DvcIgnoreFilter

    known = DvcIgnoreFilter(localfs, root)
    return lambda path: bool(known.is_ignored_file(str(path)))
