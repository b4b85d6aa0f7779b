"""Engines: what the training loop needs of a library that computes its steps, and the choice of `runtime.engine`.

An engine is a package in t2i/train/engines. Its module `engine` has a function `prepare`, which returns what implements the
protocol `Prepared`, and a function `check_settings`. All engines train with the same shards, order, draws, objective, schedules
and checkpoints, so that a run can go on from the checkpoint of another engine.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from t2i.data.cached import CachedRecords
from t2i.data.crops import Size
from t2i.model.family import Family
from t2i.model.runtime import Runtime
from t2i.train.history import Figures
from t2i.train.section import Train

Tensors = dict[str, dict[str, Tensor]]
"""Named tensors in named groups, as a checkpoint stores them."""


@runtime_checkable
class Prepared(Protocol):
    """A UNet with its optimizer, EMA and batches, ready for training steps; `str` describes it in a line."""

    @property
    def section(self) -> Train:
        """The section `train`."""
        ...

    @property
    def records(self) -> int:
        """Number of training records."""
        ...

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        ...

    @property
    def processes(self) -> int:
        """Number of processes or devices that train together: another number changes the last digits of the results."""
        ...

    @property
    def device(self) -> torch.device:
        """Where `evaluated` takes the inputs of the UNet and returns its outputs."""
        ...

    @property
    def size_px(self) -> Size:
        """Height and width of the images that it learns from."""
        ...

    @property
    def unet(self) -> nn.Module:
        """The UNet of this process, with the adapter and all weights that are not trained."""
        ...

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The EMA weights by name, in fp32: what is exported."""
        ...

    def take_step(self, step: int) -> Figures | None:
        """Takes one optimizer step, which has a number, counted from 0.

        Returns:
            The figures of the step, still on the device; None if the step has changed nothing and must be repeated.
        """
        ...

    def state(self) -> Tensors:
        """Returns all state that a step changes, for a checkpoint: the same groups, names and types in every engine."""
        ...

    def restore(self, state: Tensors) -> None:
        """Loads what `state` returned, in this run or another one with the same parameters, of this engine or another one."""
        ...

    def evaluated(self, *, averaged: bool) -> AbstractContextManager[nn.Module]:
        """Yields the UNet in evaluation mode, with its own weights or, if `averaged`, the EMA weights."""
        ...

    def before_each_forward(self, check: Callable[[], None]) -> AbstractContextManager[None]:
        """Calls `check` before each forward pass that may be given up: its exception ends a step or a validation early."""
        ...

    def close(self) -> None:
        """Ends threads and connections."""
        ...


def prepare(section: Train, runtime: Runtime, family: Family, records: CachedRecords) -> Prepared:
    """Builds everything that a training step needs, without taking a step.

    Raises:
        ValueError: if the records do not fit the UNet, or this machine does not support what `runtime` sets.
    """
    if runtime.engine == "jax":
        from t2i.train.engines.jax import engine as jax_engine

        return jax_engine.prepare(section, runtime, family, records)
    from t2i.train.engines.torch import engine as torch_engine

    return torch_engine.prepare(section, runtime, family, records)


def device_of_messages(runtime: Runtime) -> str:
    """Returns the device that PyTorch connects processes by. JAX connects its devices itself: to PyTorch, they are on CPUs."""
    return "cpu" if runtime.engine == "jax" else runtime.torch_device()


def check_settings(section: Train, runtime: Runtime) -> list[range]:
    """Checks what can be known before anything is loaded: that this machine supports the settings of training.

    Returns:
        The places in the batch that the first process computes, one range per forward pass.

    Raises:
        ValueError: if it does not; says which setting to change.
    """
    if runtime.engine == "jax":
        from t2i.train.engines.jax.settings import check_settings as check_jax

        return check_jax(section, runtime)
    from t2i.train.execution import check_settings as check_torch

    return check_torch(section, runtime)
