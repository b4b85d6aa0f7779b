"""The choice `none` of `train.adapter`."""

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from t2i.core.params import Section
from t2i.model.adapter import Facts
from t2i.model.family import Family
from t2i.model.layout import read_object
from t2i.model.precision import DTYPES, Precision
from t2i.model.pretrained import Change

_USE = """A complete diffusers pipeline. Its UNet was fine-tuned with t2i and has the EMA weights.

```python
{imports}from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("path/to/this/folder", use_safetensors=True{dtype})
pipeline("a prompt", height={height}, width={width}).images[0].save("image.png")
```"""


class Adapter(Section):
    """`train.adapter` with `name: none`."""

    name: Literal["none"]
    keeps_base: ClassVar[bool] = False

    def inject(self, unet: nn.Module, precision: Precision) -> dict[str, nn.Parameter]:
        """Changes nothing."""
        del unet, precision
        return {}

    def place(self, unet: nn.Module, seed: int, step: int, places: Sequence[int]) -> None:
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
        loaded_as = "" if precision == "fp32" else f", torch_dtype={DTYPES[precision]}"
        return _USE.format(
            imports="import torch\n" if loaded_as else "",
            pipeline=read_object(out / "model_index.json")["_class_name"],
            dtype=loaded_as,
            height=facts.size_px[0],
            width=facts.size_px[1],
        )


def open_adapter(folder: Path, scale: float) -> Change:
    """Returns the change that changes nothing."""
    del folder, scale
    return lambda name, before: before
