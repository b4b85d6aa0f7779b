"""Adapters: the interface of weights that are trained instead of the UNet's own, and how to open a model that was fine-tuned.

An adapter is a package in t2i/model/adapters. Its module `adapter` has a class `Adapter`, the model of the section
`train.adapter`, that implements this protocol, and a function `open_adapter(folder, scale)`, which returns the Change that the
adapter in a folder makes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from t2i.core.params import ParamsError, load_section, resolve_plugin
from t2i.data.digests import digest_of, sha256_of
from t2i.data.pixels import Size
from t2i.model.base import Base
from t2i.model.family import Family, load_family, open_family
from t2i.model.layout import read_object
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

    def place(self, unet: nn.Module, seed: int, step: int, places: Sequence[int]) -> None:
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


def weights_digest(model: Path) -> str:
    """Returns the sha256 of an adapter's weights or of a pipeline's UNet; of its folder if they are in several files."""
    if (model / ADAPTER_FILE).is_file():
        return sha256_of(model / str(read_object(model / ADAPTER_FILE).get("weights")))
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    return sha256_of(weights) if weights.is_file() else digest_of(model / "unet")


def files_of(adapter: Adapter) -> list[str]:
    """Returns the paths of the modules of an adapter, relative to t2i/."""
    package = Path(__file__).parent / "adapters" / adapter.name
    return sorted(path.relative_to(Path(__file__).parents[1]).as_posix() for path in package.glob("*.py"))


def open_tuned(params_file: Path, base: Path, model: Path, written_by: str, scale: float = 1.0) -> Family:
    """Opens a fine-tuned model: a pipeline, or the base with an adapter.

    Args:
        params_file: path of params.yaml.
        base: folder of the base, in diffusers layout; read only for an adapter.
        model: folder of the model.
        written_by: the command that writes the folder, for the message if it is missing.
        scale: strength of the adapter; 1: as trained, 0: the base.

    Raises:
        ValueError: if the folder has neither, the adapter does not fit the base, or a whole model is to be scaled.
    """
    if not (model / ADAPTER_FILE).is_file():
        if scale != 1.0:
            raise ValueError(
                f"{model}: got a scale of {scale:g}, but this is a whole model, not an adapter: leave the scale at 1"
            )
        return open_family(params_file, model, written_by)
    adapter = open_adapter(base, model, scale)
    return load_family(load_section(params_file, "base", Base).family, base, adapter.scheduler_changes, adapter.change)


class Opened(NamedTuple):
    """An adapter that was exported."""

    change: Change
    """What it makes of the weights of the base's UNet."""
    scheduler_changes: Mapping[str, Any]
    """Changes to the scheduler configuration of the base, with the names of diffusers."""


def open_adapter(base: Path, model: Path, scale: float) -> Opened:
    """Opens the adapter in a folder.

    Args:
        base: folder of its base.
        model: folder of the adapter.
        scale: its strength; 1: as trained, 0: none.

    Raises:
        ValueError: if there is no base, or the adapter lacks a file or has a damaged one.
    """
    if not (base / "model_index.json").is_file():
        raise ValueError(f"{base}: no pipeline here, and {model} is an adapter, which needs its base; run `t2i fetch base`")
    stated = read_object(model / ADAPTER_FILE)
    try:
        change = adapter_named(stated.get("name")).open_adapter(model, scale)
    except ParamsError as error:
        raise ValueError(f"{model / ADAPTER_FILE}: {error}") from None
    return Opened(change, stated.get("scheduler_changes") or {})


def cast_frozen(unet: nn.Module, trained: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
    """Freezes all weights of a UNet but the trained ones, and casts them; the trained ones stay in fp32."""
    for name, weight in unet.named_parameters():
        if name not in trained:
            weight.requires_grad_(False)
            weight.data = weight.data.to(dtype)
