"""Adapters: the interface of weights that are trained instead of the UNet's own.

An adapter is a package in t2i/model/adapters. Its module `adapter` has a class `Adapter`, the model of the section
`train.adapter`, that implements this protocol, a function `open_adapter`, which returns the Change that an exported one makes
(see `tuned`), and DECIDED_BY, the names of its modules that decide what is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from t2i.core.params import resolve_plugin
from t2i.data.counter import Places, Step
from t2i.data.crops import Size
from t2i.model.family import Family
from t2i.model.precision import Precision
from t2i.model.pretrained import Change

ADAPTER_FILE = "adapter.json"
"""The file of an exported adapter that says how to open it: its section, `scheduler_changes`, and the file of its `weights`."""

_ADAPTERS = "t2i.model.adapters"


@dataclass(frozen=True)
class Facts:
    """What an exported adapter states about the run that made it."""

    train: Mapping[str, Any]
    """Section `train`, as plain values."""
    steps: int
    images: int
    """Number of training records."""
    size_px: Size
    """Height and width of the images that it learnt from."""
    scheduler_changes: Mapping[str, Any]
    """Changes to the scheduler configuration of the base, with the names of diffusers."""
    base: Mapping[str, Any]
    """Content of the base's source.json."""
    dataset: Mapping[str, Any]
    """Content of dataset.json."""


@runtime_checkable
class Adapter(Protocol):
    """What is trained: an adapter beside the frozen UNet, or, with `none`, the UNet itself."""

    name: str
    keeps_base: bool
    """Whether the UNet's weights stay those of the base: they are then kept in the precision of the computations."""

    def inject(self, unet: nn.Module, precision: Precision) -> dict[str, nn.Parameter]:
        """Adds the adapter to a UNet, freezes and casts all other weights; returns its weights by name, in fp32.

        Draws the initial values from PyTorch's global generator. Returns nothing, and changes nothing, if there is no adapter.
        """
        ...

    def place(self, unet: nn.Module, seed: int, step: Step, places: Places) -> None:
        """Says which places in the batch of a step the UNet computes next, so that random layers draw by them alone."""
        ...

    def change(self, weights: Mapping[str, Tensor]) -> Change:
        """Returns the change that trained weights make to the UNet of the base."""
        ...

    def count(self, shapes: Mapping[str, Sequence[int]], trainable: str) -> int:
        """Returns the number of trained parameters, from the shapes of the UNet's weights and `train.trainable`."""
        ...

    def export(
        self, unet: nn.Module, weights: Mapping[str, Tensor], family: Family, facts: Facts, out: Path, precision: Precision
    ) -> str:
        """Writes a folder that `open_tuned` opens.

        Args:
            unet: the UNet that was trained.
            weights: the trained weights to export, by name.
            family: the base.
            facts: what the files state about the run.
            out: the folder.
            precision: that of the weights on disk.

        Returns:
            How to use it, as Markdown for the model card.

        Raises:
            ValueError: if a weight is too large for fp16.
        """
        ...


def adapter_named(name: object) -> Any:
    """Returns the module of an adapter.

    Raises:
        ParamsError: if there is none of that name; lists those that there are.
    """
    resolve_plugin(_ADAPTERS, name)
    return resolve_plugin(f"{_ADAPTERS}.{name}", "adapter")


def deciding_files(adapter: Adapter) -> list[str]:
    """Returns the paths of the modules of an adapter that decide what is trained, relative to t2i/."""
    return [f"model/adapters/{adapter.name}/{name}.py" for name in adapter_named(adapter.name).DECIDED_BY]


def cast_frozen(unet: nn.Module, trained: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
    """Freezes all weights of a UNet but the trained ones, and casts them; the trained ones stay in fp32."""
    for name, weight in unet.named_parameters():
        if name not in trained:
            weight.requires_grad_(False)
            weight.data = weight.data.to(dtype)
