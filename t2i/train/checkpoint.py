"""Checkpoints: complete or absent, verified on load, independent of the number of processes; safetensors and JSON only.

<work>/step-00000500/   MANIFEST.json (sha256 and size of each file), NAME.safetensors, state.json
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i.core.files import flush, fresh
from t2i.core.locks import locked
from t2i.data.bucket import StoreLost
from t2i.data.digests import sha256_of
from t2i.train.group import Group

_MANIFEST = "MANIFEST.json"
_FINISHED = "finished"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run after a step."""

    step: int
    """Optimizer steps taken."""
    threads: int
    """Number of CPU threads of the run; on a CPU, a different number changes the last digits of the results."""
    processes: int
    """Processes that computed them, each with these threads."""
    tensors: dict[str, dict[str, Tensor]]
    """Named tensors by file: UNet weights, EMA weights, optimizer state, counts, history."""


def save(work: Path, checkpoint: Checkpoint, keep: int, spared: Path | None = None) -> None:
    """Writes a checkpoint to a temporary folder, flushes it to disk, and renames it; removes old ones.

    Args:
        work: the work folder of the run.
        checkpoint: what to write.
        keep: number of newest checkpoints that stay.
        spared: an older one that stays too.

    Raises:
        ValueError: if the disk is full; earlier checkpoints are kept.
    """
    final = work / f"step-{checkpoint.step:08d}"
    if final.exists():
        return
    size = sum(tensor.nbytes for tensors in checkpoint.tensors.values() for tensor in tensors.values())
    with fresh(final, size) as partial:
        for name, tensors in checkpoint.tensors.items():
            whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(whole, partial / f"{name}.safetensors")
        (partial / "state.json").write_text(json.dumps(_state(checkpoint)), encoding="utf-8")
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(partial.iterdir())}
        (partial / _MANIFEST).write_text(json.dumps(files, indent=2), encoding="utf-8")
        for path in [*partial.iterdir(), partial]:
            flush(path)
    flush(work)
    for old in sorted(work.glob("step-????????"))[:-keep]:
        if old != spared:
            shutil.rmtree(old)


def load_newest(work: Path, *, discard_damaged: bool = False) -> Checkpoint | None:
    """Returns the newest undamaged checkpoint; reports on stderr which one is used, and why newer ones are skipped.

    With `discard_damaged`, damaged checkpoints are deleted. Otherwise the next `save` would count them among the newest and
    delete good ones instead.
    """
    for folder in sorted(work.glob("step-????????"), reverse=True):
        if problem := damage(folder):
            print(f"{folder}: {problem}; trying the previous checkpoint", file=sys.stderr)
            if discard_damaged:
                shutil.rmtree(folder, ignore_errors=True)
            continue
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        print(f"resuming after step {state['step']} ({folder})", file=sys.stderr)
        tensors = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
        return Checkpoint(**state, tensors=tensors)
    return None


def shared(found: Checkpoint | None, group: Group) -> Checkpoint | None:
    """Returns, in every process, the checkpoint that the first one has found, so that the others need no shared disk."""
    if group.size == 1:
        return found
    described = group.told("checkpoint", found and {"state": _state(found), "tensors": _described(found.tensors)})
    if described is None:
        return None
    tensors = found.tensors if found else _empty(described["tensors"])
    for of_file in tensors.values():
        for tensor in of_file.values():
            group.send(tensor)
    return Checkpoint(**described["state"], tensors=tensors)


def _state(checkpoint: Checkpoint) -> dict[str, int]:
    return {name: getattr(checkpoint, name) for name in ("step", "threads", "processes")}


def _described(tensors: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """Returns the type and shape of each tensor, as JSON has them."""
    return {
        file: {name: (str(t.dtype).removeprefix("torch."), t.shape) for name, t in its.items()} for file, its in tensors.items()
    }


def _empty(described: dict[str, dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """Returns tensors of the types and shapes that `_described` returned."""
    return {
        file: {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in its.items()}
        for file, its in described.items()
    }


def finish(work: Path) -> None:
    """Marks a run as finished: its checkpoints stay until another run starts."""
    (work / _FINISHED).touch()


def make_room(work: Path, *, restart: bool) -> None:
    """Removes the work of other finished runs, incomplete checkpoints and, if `restart` is set, this run's own checkpoints."""
    (work / _FINISHED).unlink(missing_ok=True)
    for marker in work.parent.glob(f"*/{_FINISHED}"):
        if marker.parent != work:
            others = contextlib.suppress(ValueError, FileNotFoundError)  # in use, or another run has removed it
            with others, locked(marker.parent):
                marker.parent.rename(marker.parent.with_suffix(".tmp"))  # so that a kill cannot delete only the marker
    for gone in work.parent.glob("*.tmp"):
        shutil.rmtree(gone, ignore_errors=True)
    for own in [*work.glob("step-*"), *work.glob("validation-*")] if restart else work.glob("step-*.partial"):
        shutil.rmtree(own)


def damage(folder: Path) -> str | None:
    """Returns what is wrong with the files of a checkpoint, or None if they are intact."""
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name, row in files.items():
            if (folder / name).stat().st_size != row["bytes"] or sha256_of(folder / name) != row["sha256"]:
                return f"{name} does not match MANIFEST.json"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable ({error})"
    return None


@contextmanager
def saved_if_lost(save: Callable[[], None]) -> Iterator[None]:
    """Saves a checkpoint if the block ends because no shard comes from the store any more, or a file cannot be read."""
    try:
        yield
    except (StoreLost, OSError):
        save()
        raise
