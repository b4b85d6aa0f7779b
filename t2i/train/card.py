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
{usage}
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


_USAGE = """{imports}from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("{source}", use_safetensors=True{dtype})
{then}image = pipeline({arguments}).images[0]
image.save("image.png")"""


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
    pipeline, settings = read_object(model / "model_index.json")["_class_name"], {"height": size_px[0], "width": size_px[1]}
    card = _CARD.format(
        usage=usage(pipeline, "path/to/this/folder", precision, "a prompt", settings),
        licence_line=f"license: {licence.lower().replace(' ', '-')}\n" if licence else "",
        base=_listed(origin),
        dataset=_listed(described),
        made_by=json.dumps(made_by, indent=2, sort_keys=True, ensure_ascii=False),
    )
    (model / "README.md").write_text(card, encoding="utf-8")


def usage(pipeline: str, source: str, precision: Precision, prompt: str, settings: dict[str, Any], then: str = "") -> str:
    """Returns the code that draws an image with a model.

    Args:
        pipeline: the class of diffusers.
        source: what it loads: a folder, or a name on the Hub.
        precision: that of the weights.
        prompt: what it draws.
        settings: the other arguments of the call.
        then: lines of code between the loading and the drawing.
    """
    loaded_as = "" if precision == "fp32" else f", torch_dtype={DTYPES[precision]}"
    words = [json.dumps(prompt, ensure_ascii=False), *(f"{name}={value}" for name, value in settings.items())]
    imports = "import torch\n" if loaded_as else ""
    return _USAGE.format(
        imports=imports, pipeline=pipeline, source=source, dtype=loaded_as, then=then, arguments=", ".join(words)
    )


def _listed(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {in_words(value)}" for name, value in facts.items() if value is not None) or "- not recorded"


def in_words(value: Any) -> str:
    """Returns a fact of a JSON file as text: `128 heldout, 1404 train` for a mapping."""
    return ", ".join(f"{inner} {name}" for name, inner in value.items()) if isinstance(value, dict) else str(value)
