"""The model card: what a model was made from, and how to use it."""

import json
from pathlib import Path
from typing import Any

from t2i.data.pixels import Size
from t2i.model.layout import read_object
from t2i.model.precision import DTYPES, Precision

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, text-to-image, t2i]
{licence_line}---

# A fine-tuned text-to-image model

A complete diffusers pipeline. Its UNet was fine-tuned with t2i and has the EMA weights.

```python
{imports}from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("path/to/this/folder", use_safetensors=True{dtype})
pipeline("a prompt", height={size[0]}, width={size[1]}).images[0].save("image.png")
```

## Base

{base}

## Dataset

{dataset}

## Training parameters and input digests

```json
{made_by}
```
"""


def write_card(model: Path, dataset: Path, made_by: dict[str, Any], precision: Precision, size_px: Size) -> None:
    """Writes the model card as README.md into the folder of a model.

    Args:
        model: folder of the pipeline; it also has the source.json of the base.
        dataset: dataset.json, written by `fetch dataset`.
        made_by: parameters and digests of everything that determines the result.
        precision: that of its weights.
        size_px: height and width of the images that it learnt from.
    """
    described = json.loads(dataset.read_text(encoding="utf-8"))
    origin = json.loads((model / "source.json").read_text(encoding="utf-8")) if (model / "source.json").is_file() else {}
    licence = described.get("licence")
    loaded_as = "" if precision == "fp32" else f", torch_dtype={DTYPES[precision]}"
    card = _CARD.format(
        imports="import torch\n" if loaded_as else "",
        pipeline=read_object(model / "model_index.json")["_class_name"],
        dtype=loaded_as,
        size=size_px,
        licence_line=f"license: {licence.lower().replace(' ', '-')}\n" if licence else "",
        base=_listed(origin),
        dataset=_listed({name: fact for name, fact in described.items() if name != "tags"}),
        made_by=json.dumps(made_by, indent=2, sort_keys=True, ensure_ascii=False),
    )
    (model / "README.md").write_text(card, encoding="utf-8")


def _listed(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {_shown(value)}" for name, value in facts.items() if value is not None) or "- not recorded"


def _shown(value: Any) -> str:
    return ", ".join(f"{inner} {name}" for name, inner in value.items()) if isinstance(value, dict) else str(value)
