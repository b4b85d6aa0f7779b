"""The model card: what a model was made from, and how to use it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.model.adapter import Facts

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, text-to-image, t2i]
{licence_line}---

# A fine-tuned text-to-image model

{use}

## Base

{base}

## Dataset

{dataset}

## Training parameters and input digests

```json
{made_by}
```
"""


def write_card(model: Path, use: str, facts: Facts, made_by: Mapping[str, Any]) -> None:
    """Writes the model card as README.md into the folder of a model.

    Args:
        model: the folder.
        use: how to use the model, as Markdown.
        facts: what is stated about the run.
        made_by: parameters and digests of everything that determines the result.
    """
    licence = facts.dataset.get("licence")
    card = _CARD.format(
        use=use,
        licence_line=f"license: {licence.lower().replace(' ', '-')}\n" if licence else "",
        base=_listed(facts.base),
        dataset=_listed(facts.dataset),
        made_by=json.dumps(made_by, indent=2, sort_keys=True, ensure_ascii=False),
    )
    (model / "README.md").write_text(card, encoding="utf-8")


def _listed(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {_shown(value)}" for name, value in facts.items() if value is not None) or "- not recorded"


def _shown(value: Any) -> str:
    return ", ".join(f"{inner} {name}" for name, inner in value.items()) if isinstance(value, dict) else str(value)
