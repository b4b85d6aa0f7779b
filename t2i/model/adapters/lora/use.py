"""How to use a LoRA, for its model card."""

from collections.abc import Mapping
from typing import Any

from t2i.model.adapter import Facts
from t2i.model.family import Family
from t2i.model.layout import setting
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


def stated_for_use(family: Family, facts: Facts) -> dict[str, Any]:
    """Returns what adapter.json says for `code_for`: the class of the pipeline, and what of it differs from the base."""
    scheduler = load_scheduler(family.folder, facts.scheduler_changes)
    changed = [name for name in (*facts.scheduler_changes, "clip_sample") if name in scheduler.config]
    return {
        "pipeline": family.pipeline_class,
        "scheduler": type(scheduler).__name__ if facts.scheduler_changes else None,
        "scheduler_arguments": {name: scheduler.config[name] for name in changed} if facts.scheduler_changes else {},
        "text_layers": setting(family.folder / "text_encoder", "num_hidden_layers") if facts.base.get("clip_skip") else None,
    }


def code_for(
    stated: Mapping[str, Any],
    base: Mapping[str, Any],
    place: str,
    precision: Precision,
    prompt: str,
    settings: Mapping[str, Any],
    scale: float = 1.0,
) -> str:
    """Returns code that draws an image with a LoRA.

    Args:
        stated: content of adapter.json.
        base: content of the base's source.json.
        place: where the LoRA is.
        precision: that of its weights.
        prompt: what is drawn.
        settings: the other arguments of the call that draws.
        scale: strength of the LoRA.
    """
    lines, classes = [f'pipeline.load_lora_weights("{place}", weight_name="{PEFT_FILE}")'], []
    if scale != 1:
        lines.append(f"pipeline.set_adapters(pipeline.get_active_adapters(), {scale:g})")
    if stated["scheduler"]:
        arguments = ", ".join(f"{name}={value!r}" for name, value in stated["scheduler_arguments"].items())
        lines.append(f"pipeline.scheduler = {stated['scheduler']}.from_config(pipeline.scheduler.config, {arguments})")
        classes.append(stated["scheduler"])
    if stated["text_layers"]:
        lines.append(f"del pipeline.text_encoder.encoder.layers[{stated['text_layers']}:]  # the captions were encoded without")
    return drawing_code(stated["pipeline"], base, precision, prompt, settings, lines, classes)


def others(stated: Mapping[str, Any]) -> str:
    """Returns how to use a LoRA in other programs than diffusers."""
    if stated["without_kohya"]:
        merge = " For ComfyUI and A1111, merge it into the base with `t2i export --single-file`." if stated["mergeable"] else ""
        return f"It is stored in PEFT's layout (`{PEFT_FILE}`) alone, since {stated['without_kohya']}.{merge}"
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
    return _USE.format(
        rank=stated["rank"],
        code=code_for(stated, facts.base, "path/to/this/folder", precision, "a prompt", settings),
        others=others(stated),
        clip_skip=f"\n\n{clip_skip_note(skipped)}" if skipped else "",
    )


def clip_skip_note(skipped: int) -> str:
    """Returns what to set if the captions were encoded without the last layers of the text encoder."""
    return (
        f"Its captions were encoded without the last {skipped} layers of the text encoder: the code removes them, and other "
        f"programs need `Clip skip` {skipped + 1}."
    )
