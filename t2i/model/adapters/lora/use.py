"""How to use a LoRA, for its model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.model.adapter import Facts
from t2i.model.layout import read_object
from t2i.model.precision import Precision
from t2i.model.schedule import load_scheduler
from t2i.model.usage import drawing_code

PEFT_FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "lora.safetensors"

_USE = """A LoRA of rank {rank} for the base below, trained with t2i. It has the EMA of its weights, and no copy of the base.

```python
{code}
```

{others}{clip_skip}"""


def stated_for_use(base: Path, facts: Facts) -> dict[str, Any]:
    """Returns what adapter.json says for `code_for`: the class of the pipeline and, if it is another one, of the scheduler."""
    scheduler = load_scheduler(base, facts.scheduler_changes)
    changed = [name for name in (*facts.scheduler_changes, "clip_sample") if name in scheduler.config]
    return {
        "pipeline": read_object(base / "model_index.json")["_class_name"],
        "scheduler": type(scheduler).__name__ if facts.scheduler_changes else None,
        "scheduler_arguments": {name: scheduler.config[name] for name in changed} if facts.scheduler_changes else {},
    }


def code_for(
    stated: Mapping[str, Any], base: str, place: str, precision: Precision, prompt: str, settings: Mapping[str, Any]
) -> str:
    """Returns code that draws an image with a LoRA.

    Args:
        stated: content of adapter.json.
        base: where the base is: a folder, or a name on the Hub.
        place: where the LoRA is.
        precision: that of its weights.
        prompt: what is drawn.
        settings: the other arguments of the call that draws.
    """
    lines, scheduler = [f'pipeline.load_lora_weights("{place}", weight_name="{PEFT_FILE}")'], stated["scheduler"]
    if scheduler:
        arguments = ", ".join(f"{name}={value!r}" for name, value in stated["scheduler_arguments"].items())
        lines.append(f"pipeline.scheduler = {scheduler}.from_config(pipeline.scheduler.config, {arguments})")
    return drawing_code(stated["pipeline"], base, precision, prompt, settings, lines, [scheduler] if scheduler else [])


def others(stated: Mapping[str, Any]) -> str:
    """Returns how to use a LoRA in other programs than diffusers."""
    if stated["without_kohya"]:
        return (
            f"It is stored in PEFT's layout (`{PEFT_FILE}`) alone, since {stated['without_kohya']}. For ComfyUI and A1111, "
            "merge it into the base with `t2i export --single-file`."
        )
    return (
        f"`{KOHYA_FILE}` has the same weights for ComfyUI, A1111 and other programs: put it into their folder of LoRAs "
        "(`models/loras`, `models/Lora`); in A1111, write `<lora:lora:1>` into the prompt."
    )


def how_to_use(stated: Mapping[str, Any], facts: Facts, precision: Precision) -> str:
    """Returns how to use a LoRA, as Markdown.

    Args:
        stated: content of adapter.json.
        facts: what is stated about the run.
        precision: that of its weights.
    """
    settings, skipped = dict(zip(("height", "width"), facts.size_px, strict=True)), int(facts.base.get("clip_skip") or 0)
    base = str(facts.base.get("source") or "path/to/the/base")
    return _USE.format(
        rank=stated["rank"],
        code=code_for(stated, base, "path/to/this/folder", precision, "a prompt", settings),
        others=others(stated),
        clip_skip=f"\n\n{clip_skip_note(skipped)}" if skipped else "",
    )


def clip_skip_note(skipped: int) -> str:
    """Returns what to set if the captions were encoded without the last layers of the text encoder."""
    return (
        f"Its captions were encoded without the last {skipped} layers of the text encoder: use it with `clip_skip={skipped}` "
        f"in diffusers, and with `Clip skip` {skipped + 1} in other programs."
    )
