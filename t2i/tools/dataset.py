"""Dataset: checks of what `fetch dataset` reads: whether it is there, whether DVC sees it, and whether other clones have it."""

import shlex
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from t2i.core.params import resolve_plugin
from t2i.fetch.dataset import Fetch
from t2i.fetch.watched import check_watched
from t2i.tools.surroundings import Finding, tried

_FEW = 3
"""Most paths that a message names, and most files that are tracked one by one."""


def dataset(section: Fetch) -> Iterator[Finding]:
    """Yields findings about the source and the folder `fetch.local`."""
    yield from tried("dataset", partial(_readable, section))
    local = Path(section.local)
    if not section.source.reads_local or not local.is_dir():
        return
    found = list(untracked(local))
    texts = (local / "metadata.jsonl", local / "metadata.csv")  # data/.gitignore leaves these two to git
    for_git = [path for path in found if path.suffix == ".dvc" or path in texts]
    for_dvc = [path for path in found if path not in for_git]
    if for_dvc:
        remedy = f"`dvc add {_quoted(for_dvc[0])}`"
        if sum(path.is_file() for path in for_dvc) > _FEW:
            remedy = "put them into a folder, and `dvc add` the folder"
        yield _lacking(for_dvc, remedy)
    if for_git:
        force = "" if all(path.parent == local for path in for_git) else "-f "  # data/.gitignore ignores what lies deeper
        yield _lacking(for_git, f"`git add {force}{_quoted(*for_git[:_FEW])}`")


def _lacking(paths: Sequence[Path], remedy: str) -> Finding:
    lack = f"queued experiments and other clones do not have {'it' if len(paths) == 1 else 'them'}"
    return Finding("note", "dataset", f"neither git nor DVC tracks {_some(paths)}: {lack}; {remedy}")


def _quoted(*paths: Path) -> str:
    """Returns paths as the words of a command."""
    return " ".join(shlex.quote(path.as_posix()) for path in paths)


def _readable(section: Fetch) -> str:
    """Checks that the source has something to read, and that DVC sees every change of it."""
    local = Path(section.local)
    if not local.is_dir():
        raise ValueError(f"`fetch.local` {section.local!r} is not a folder, which DVC needs: create it, or name another one")
    if not section.source.reads_local:
        return f"source {section.source.name} does not read `fetch.local`"
    check_watched(local, "fetch.local")
    if section.source.name != "hub":  # `datasets` would read or convert everything
        resolve_plugin("t2i.fetch.sources", section.source.name).open_source(section.source, local)
    return f"source {section.source.name} reads {section.local}, and DVC sees every change below it"


def untracked(local: Path) -> Iterator[Path]:
    """Yields the files and folders below a folder of the checkout that neither git nor DVC tracks, each as a whole.

    Nothing is said of a folder that is named by its absolute path: it is read where it is. Notes named README and hidden files
    do not count.
    """
    if local.is_absolute() or any(_tracked_by_dvc(folder) for folder in (local, *local.parents)):
        return
    listed = subprocess.run(["git", "ls-files", "-z", "--", local], capture_output=True, text=True, check=False).stdout
    of_git = {Path(name) for name in listed.split("\0") if name}
    yield from _untracked_below(local, of_git | {folder for path in of_git for folder in path.parents})


def _untracked_below(folder: Path, of_git: set[Path]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.stem == "README" or _tracked_by_dvc(path):
            continue
        if path.is_dir() and (path in of_git or any(path.rglob("*.dvc"))):
            yield from _untracked_below(path, of_git)
        elif path not in of_git:
            yield path


def _tracked_by_dvc(path: Path) -> bool:
    return path.with_name(f"{path.name}.dvc").is_file() if path.name else False


def _some(paths: Sequence[Path]) -> str:
    """Returns the first of some paths, and the number of the others."""
    shown = ", ".join(path.as_posix() for path in paths[:_FEW])
    return f"{shown} and {len(paths) - _FEW} more" if len(paths) > _FEW else shown
