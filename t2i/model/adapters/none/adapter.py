"""The choice `none` of `train.adapter`."""

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from t2i.core.params import Section
from t2i.data.counter import Places, Step
from t2i.model.adapter import Facts
from t2i.model.adapters.none.use import how_to_use
from t2i.model.family import Family
from t2i.model.precision import Precision
from t2i.model.pretrained import Change


class Adapter(Section):
    """`train.adapter` with `name: none`."""

    name: Literal["none"]
    keeps_base: ClassVar[bool] = False

    def inject(self, unet: nn.Module, precision: Precision) -> dict[str, nn.Parameter]:
        """Changes nothing."""
        del unet, precision
        return {}

    def place(self, unet: nn.Module, seed: int, step: Step, places: Places) -> None:
        """Changes nothing."""
        del unet, seed, step, places

    def change(self, weights: Mapping[str, Tensor]) -> Change:
        """Returns the change that replaces weights by those of the same name."""
        return lambda name, before: weights.get(name, before)

    def count(self, shapes: Mapping[str, Sequence[int]], trainable: str) -> int:
        """Returns the number of parameters whose names match `train.trainable`."""
        return sum(prod(shape) for name, shape in shapes.items() if re.search(trainable, name))

    def export(
        self, unet: nn.Module, weights: Mapping[str, Tensor], family: Family, facts: Facts, out: Path, precision: Precision
    ) -> str:
        """Writes a complete pipeline, and returns how to load it."""
        family.export(dict(unet.named_parameters()) | dict(weights), out, precision)
        return how_to_use(family.pipeline_class, facts, precision)


DECIDED_BY = ("adapter",)
"""The modules of this package that decide what is trained."""


def open_adapter(folder: Path, unet: Path, scale: float) -> Change:
    """Returns the change that changes nothing."""
    del folder, unet, scale
    return lambda name, before: before
