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
from t2i.model.precision import Precision
from t2i.model.pretrained import Change
from t2i.model.usage import drawing_code

_USE = """A complete diffusers pipeline. Its UNet was fine-tuned with t2i and has the EMA weights.

```python
{code}
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
        pipeline, settings = (
            read_object(out / "model_index.json")["_class_name"],
            dict(zip(("height", "width"), facts.size_px, strict=True)),
        )
        return _USE.format(code=drawing_code(pipeline, "path/to/this/folder", precision, "a prompt", settings))


def open_adapter(folder: Path, scale: float) -> Change:
    """Returns the change that changes nothing."""
    del folder, scale
    return lambda name, before: before
