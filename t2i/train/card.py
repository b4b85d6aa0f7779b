"""The model card: what a model was made from, and how to use it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.model.adapter import Facts

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, text-to-image, t2i]
{licence_line}---

# A fine-tuned text-to-image model

{use}

{pictures}## Base

{base}

## Dataset

{dataset}

## Training parameters and input digests

```json
{made_by}
```
"""


Pictures = Sequence[tuple[str, Image.Image]]
"""Prompts with what the model draws for them."""


def write_card(model: Path, use: str, facts: Facts, made_by: Mapping[str, Any], pictures: Pictures) -> None:
    """Writes the model card as README.md into the folder of a model, and its pictures beside it.

    Args:
        model: the folder.
        use: how to use the model, as Markdown.
        facts: what is stated about the run.
        made_by: parameters and digests of everything that determines the result.
        pictures: drawn by the model at the end of training.
    """
    for number, (_, image) in enumerate(pictures):
        (model / "pictures").mkdir(exist_ok=True)
        image.save(model / "pictures" / f"{number}.png")
    licence = facts.dataset.get("licence")
    card = _CARD.format(
        use=use,
        pictures=_shown_pictures([prompt for prompt, _ in pictures]),
        licence_line=f"license: {licence.lower().replace(' ', '-')}\n" if licence else "",
        base=_listed(facts.base),
        dataset=_listed({name: fact for name, fact in facts.dataset.items() if name != "tags"}),
        made_by=json.dumps(made_by, indent=2, sort_keys=True, ensure_ascii=False),
    )
    (model / "README.md").write_text(card, encoding="utf-8")


def _shown_pictures(prompts: Sequence[str]) -> str:
    """Returns a table of the pictures in Markdown, three in a row."""
    rows = [prompts[at : at + 3] for at in range(0, len(prompts), 3)]
    lines = ["| | | |", "|---|---|---|"] if rows else []
    for number, row in enumerate(rows):
        lines.append(" ".join(f"| ![](pictures/{3 * number + at}.png)" for at in range(len(row))) + " |")
        lines.append(" ".join("| " + prompt.replace("|", "\\|") for prompt in row) + " |")
    return "\n".join([*lines, "", ""]) if rows else ""


def _listed(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {in_words(value)}" for name, value in facts.items() if value is not None) or "- not recorded"


def in_words(value: Any) -> str:
    """Returns a fact of a JSON file as text: `128 heldout, 1404 train` for a mapping."""
    return ", ".join(f"{inner} {name}" for name, inner in value.items()) if isinstance(value, dict) else str(value)
