"""Steps of training on the caches of a project, with either engine; JAX in a fork, since torchax changes PyTorch."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i.core.params import load_section
from t2i.data.cached import CachedRecords
from t2i.model.family import load_family
from t2i.model.runtime import Runtime
from t2i.train import engine
from t2i.train.engine import Tensors, prepare
from t2i.train.section import Train
from tests.projects import Project
from tests.victims import victim

SETTINGS: dict[str, Any] = {"steps": 20, "warmup_steps": 0, "learning_rate": 1e-4, "trainable": ""}
FIGURES = ("loss", "mse", "grad_norm")


def prepared(project: Project, kind: str, train: dict[str, Any], runtime: dict[str, Any]) -> Any:
    """A run on the project's caches with an engine."""
    AcceleratorState._reset_state(reset_partial_state=True)
    project.params["train"] |= SETTINGS | train
    project.params["runtime"] |= {"engine": kind, "tf32": False} | runtime
    project.write()
    params_file, data = project.folder / "params.yaml", project.folder / "data"
    section = load_section(params_file, "train", Train)
    family = load_family(project.params["base"]["family"], data / "base", section.objective.scheduler_changes())
    records = CachedRecords(data / "latents", data / "embeds", "train")
    return prepare(section, load_section(params_file, "runtime", Runtime), family, records)


def taken(
    project: Project,
    kind: str,
    steps: range,
    *,
    train: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
    after: Tensors | None = None,
) -> Tensors:
    """Takes steps in this process, after those of a state; returns the state, and the figures of the steps."""
    run = prepared(project, kind, train or {}, runtime or {})
    assert isinstance(run, engine.Prepared)
    if after is not None:
        run.restore(after)
    figures = [run.take_step(step) for step in steps]
    rows = {name: torch.tensor([float(getattr(row, name)) for row in figures]) for name in FIGURES}
    run.close()
    return {"figures": rows} | {
        group: {name: tensor.detach().clone() for name, tensor in its.items()} for group, its in run.state().items()
    }


def in_a_fork(action: Callable[[], Tensors], devices: int = 1) -> Tensors:
    """Returns what an action returns that needs JAX, which finds this number of devices."""

    def kept() -> None:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        for group, its in action().items():
            save_file({name: tensor.contiguous() for name, tensor in its.items()}, f"{group}.found")

    ended = victim(kept)
    assert ended.code == 0, ended.said
    found = {path.stem: load_file(path) for path in Path().glob("*.found")}
    for path in Path().glob("*.found"):
        path.unlink()
    return found


def relative(one: Tensor, other: Tensor) -> float:
    """Returns the L2 norm of a difference, divided by that of the first tensor."""
    return float((one.double() - other.double()).norm() / one.double().norm().clamp_min(1e-30))


def assert_same(found: Tensors, wanted: Tensors, *, figures: float = 1e-5, weights: float = 1e-4) -> None:
    """Checks names and types, and values within relative tolerances."""
    assert {group: its.keys() for group, its in found.items()} == {group: its.keys() for group, its in wanted.items()}
    for name in FIGURES:
        torch.testing.assert_close(found["figures"][name], wanted["figures"][name], rtol=figures, atol=0)
    for group in wanted.keys() - {"figures"}:
        for name, tensor in wanted[group].items():
            assert (found[group][name].dtype, found[group][name].shape) == (tensor.dtype, tensor.shape), name
            assert relative(tensor, found[group][name]) < weights, (group, name)
