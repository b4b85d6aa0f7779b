"""The model card: what made a model, and how to use it."""

import json
from pathlib import Path
from typing import Any

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, text-to-image, t2i]
{licence_line}---

# A fine-tuned text-to-image model

A complete diffusers pipeline whose UNet was fine-tuned with t2i; the weights are the EMA's.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("path/to/this/folder", use_safetensors=True)
pipeline("a prompt").images[0].save("image.png")
```

## Base

{base}

## Dataset

{dataset}

## What made it

```json
{made_by}
```
"""


def write_card(model: Path, dataset: Path, made_by: dict[str, Any]) -> None:
    """Writes README.md into a model's folder.

    Args:
        model: the pipeline, with the base's source.json in it.
        dataset: dataset.json, from `fetch dataset`.
        made_by: parameters and digests of all that decided the result.
    """
    described = json.loads(dataset.read_text(encoding="utf-8"))
    origin = json.loads((model / "source.json").read_text(encoding="utf-8")) if (model / "source.json").is_file() else {}
    licence = described.get("licence")
    card = _CARD.format(
        licence_line=f"license: {licence.lower().replace(' ', '-')}\n" if licence else "",
        base=_listed(origin),
        dataset=_listed(described),
        made_by=json.dumps(made_by, indent=2, sort_keys=True, ensure_ascii=False),
    )
    (model / "README.md").write_text(card, encoding="utf-8")


def _listed(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None) or "- not recorded"
