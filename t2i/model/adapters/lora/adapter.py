"""The choice `lora` of `train.adapter`: PEFT puts factors beside the layers of a UNet, and they alone are trained."""

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from t2i.core.params import Section
from t2i.data.counter import Places, Step
from t2i.model.adapter import Facts, cast_frozen
from t2i.model.adapters.lora.dropout import place_dropouts, replace_dropouts
from t2i.model.adapters.lora.files import read_adapter, write_adapter
from t2i.model.adapters.lora.merging import by_module, check_fit, merging
from t2i.model.adapters.lora.targets import TARGETS, Targets
from t2i.model.checks import in_one_line
from t2i.model.family import Family
from t2i.model.precision import DTYPES, Precision
from t2i.model.pretrained import Change
from t2i.model.tensor_file import StoredTensors


class Adapter(Section):
    """`train.adapter` with `name: lora`: a layer W becomes W + (alpha / rank) B A, and A and B are trained."""

    name: Literal["lora"]
    rank: int = Field(ge=1)
    """Number of rows of A and columns of B."""
    alpha: float = Field(gt=0)
    """Strength of the product of both: it is multiplied by alpha / rank."""
    dropout: float = Field(ge=0, lt=1)
    """Probability that an input of A is zeroed during training."""
    targets: Targets
    """The layers: `attention` (queries, keys, values, outputs), `attention_mlp` (and the feed-forward layers), `all_linear`
    (and the projections in and out of a transformer, as kohya's trainer), `conv` (and the layers between transformers)."""
    dora: bool
    """Whether to train the norm of each output's weights too (DoRA; Liu et al. 2024, arXiv 2402.09353, eq. 5). Only diffusers
    reads the result; for other programs, it is merged into the base."""

    keeps_base: ClassVar[bool] = True

    def inject(self, unet: nn.Module, precision: Precision) -> dict[str, nn.Parameter]:
        """Puts factors beside the layers of a UNet, and freezes and casts everything else; returns the factors by name.

        A is drawn from a normal distribution with a standard deviation of 1 / rank, and B is zero, so that the UNet computes
        at first what it did.

        Raises:
            ValueError: if the UNet has no such layer.
        """
        from peft import inject_adapter_in_model

        try:
            inject_adapter_in_model(self.peft_config(), unet)
        except ValueError as error:
            raise ValueError(
                f"`train.adapter.targets` is {self.targets}, but the UNet has no such layer ({in_one_line(error)})"
            ) from None
        if self.dropout:
            replace_dropouts(unet)
        factors = {name: weight for name, weight in unet.named_parameters() if ".lora_" in name}
        cast_frozen(unet, factors, DTYPES[precision])
        return factors

    def peft_config(self) -> Any:
        """Returns the same as PEFT's LoraConfig."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=TARGETS[self.targets],
            init_lora_weights="gaussian",
            use_dora=self.dora,
        )

    def place(self, unet: nn.Module, seed: int, step: Step, places: Places) -> None:
        """Says which places in the batch of a step the UNet computes next: they decide what is dropped."""
        if self.dropout:
            place_dropouts(unet, seed, step, places)

    def change(self, weights: Mapping[str, Tensor]) -> Change:
        """Returns the change that trained factors make to the UNet of the base."""
        return merging(by_module(weights), self.alpha / self.rank)

    def count(self, shapes: Mapping[str, Sequence[int]], trainable: str) -> int:
        """Returns the number of parameters of the factors."""
        del trainable
        layers = [shape for name, shape in shapes.items() if re.fullmatch(TARGETS[self.targets], name.removesuffix(".weight"))]
        factors = sum(self.rank * (prod(shape[1:]) + shape[0]) for shape in layers)
        return factors + (sum(shape[0] for shape in layers) if self.dora else 0)

    def export(
        self, unet: nn.Module, weights: Mapping[str, Tensor], family: Family, facts: Facts, out: Path, precision: Precision
    ) -> str:
        """Writes the factors in PEFT's layout and, without DoRA, in kohya's layout; returns how to use them."""
        return write_adapter(self, unet, weights, family, facts, out, precision)


DECIDED_BY = ("adapter", "dropout", "targets")
"""The modules of this package that decide what is trained."""


def open_adapter(folder: Path, unet: Path, scale: float) -> Change:
    """Returns the change that the adapter in a folder makes to the UNet of its base.

    Args:
        folder: written by `Adapter.export`.
        unet: folder of the UNet of its base.
        scale: its strength; 1: as trained. 0 leaves out the product B A, and a DoRA keeps its norms.

    Raises:
        ValueError: if the folder lacks a file of the adapter, one is damaged, or the adapter does not fit the UNet.
    """
    factors, alpha_by_rank = read_adapter(folder)
    stored = StoredTensors(sorted(unet.glob("*.safetensors")))
    check_fit(factors, {name: stored.shape(name) for name in stored})
    return merging(factors, scale * alpha_by_rank)
