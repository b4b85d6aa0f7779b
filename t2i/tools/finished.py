"""Finished: whether the outputs in `data` are those of a complete run of the current code, parameters and data.

DVC decides it: dvc.lock has the hash of everything that each stage read and wrote.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2i.tools.preset import leaves

_LAST = "evaluate-report"
"""The stage whose outputs, with those of the stages before it, make a complete run."""

Stages = dict[str, dict[str, dict[str, str]]]
"""For each stage, `deps` and `outs`: the MD5 of each file and folder in dvc.lock, by path."""


@contextmanager
def finished_run() -> Iterator[Stages]:
    """Yields what each stage read and wrote. Holds DVC's lock meanwhile, so that no `dvc repro` changes the outputs.

    Raises:
        ValueError: if an output is missing, or was made from other parameters, data or code; says the stage and the remedy.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    if not Path("dvc.lock").is_file() or not Path("dvc.lock").stat().st_size:
        raise ValueError("dvc.lock: missing or empty, so no finished run is recorded here: run `dvc repro`")
    try:
        with Repo() as repo, repo.lock:
            needed = set(repo.stage.collect(_LAST, with_deps=True))
            stages = [stage for stage in repo.index.stages if stage in needed and stage.cmd]  # no `dvc add`, which has none
            for stage in stages:
                _check(stage)
            yield {stage.name: {"deps": _hashes(stage.deps), "outs": _hashes(stage.outs)} for stage in stages}
    except LockError:
        raise ValueError("a dvc command is running in this folder: wait for it, then run this command again") from None
    except DvcException as error:
        raise ValueError(f"{' '.join(str(error).split())}: `dvc status` says more") from None


def _check(stage: Any) -> None:
    """Raises a ValueError if a stage has not run, or would run again, or if its outputs are not those that it wrote."""
    if not any(entry.hash_info for entry in (*stage.deps, *stage.outs)):
        raise ValueError(f"stage {stage.name} has not run: run `dvc repro`")
    if stage.cmd_changed:
        raise ValueError(f"dvc.yaml: the command of stage {stage.name} changed after it ran: run `dvc repro`")
    for dep in stage.deps:
        if dep.workspace_status():
            if hasattr(dep, "read_params"):
                raise ValueError(f"params.yaml: {_parameters(dep)} when stage {stage.name} ran: run `dvc repro`")
            raise ValueError(
                f"{dep}: changed after stage {stage.name} ran: run `dvc repro`, or, if the change alters no result, "
                f"`dvc commit -f {stage.name}`"
            )
    for out in stage.outs:
        if status := out.workspace_status():
            found = "missing" if "deleted" in status.values() else f"not what stage {stage.name} wrote"
            raise ValueError(f"{out}: {found}: run `dvc repro`")


def _parameters(dep: Any) -> str:
    """Returns the first parameter that differs from dvc.lock, and how many others do."""
    now, before = (dict(leaves(values)) for values in (dep.read_params(), dep.hash_info.value or {}))
    places = [place for place in now | before if now.get(place) != before.get(place)]
    others = f" ({len(places) - 1} others differ too)" if len(places) > 1 else ""
    return f"`{places[0]}` is {now.get(places[0])!r}{others}, but was {before.get(places[0])!r}"


def _hashes(entries: Iterable[Any]) -> dict[str, str]:
    return {str(entry): entry.hash_info.value for entry in entries if isinstance(entry.hash_info.value, str)}
