"""How to use a LoRA, for its model card."""

from pathlib import Path
from typing import TYPE_CHECKING

from t2i.model.adapter import Facts
from t2i.model.layout import read_object
from t2i.model.precision import DTYPES, Precision
from t2i.model.schedule import load_scheduler

if TYPE_CHECKING:
    from t2i.model.adapters.lora.adapter import Adapter

_USE = """A LoRA of rank {rank} for the base below, trained with t2i. It has the EMA of its weights, and no copy of the base.

With diffusers, at a strength of 1:

```python
import torch
from diffusers import {imported}

pipeline = {pipeline}.from_pretrained("{base}", torch_dtype={dtype})
pipeline.load_lora_weights("path/to/this/folder", weight_name="pytorch_lora_weights.safetensors"){scheduler}
pipeline("a prompt", height={height}, width={width}).images[0].save("image.png")
```

{others}{notes}"""

_KOHYA = """With ComfyUI, A1111 and other programs: put `lora.safetensors` into their folder of LoRAs (`models/loras`,
`models/Lora`); in A1111, write `<lora:lora:1>` into the prompt. Both files hold the same weights."""

_DORA = """This is a DoRA. It is stored in PEFT's layout only: diffusers would drop the norms of a file in kohya's layout. For
ComfyUI and A1111, `t2i export --single-file` writes the base with the adapter merged into it."""

_SCHEDULER = """
pipeline.scheduler = {scheduler}.from_config(pipeline.scheduler.config, {changes})"""


def how_to_use(lora: "Adapter", base: Path, facts: Facts, precision: Precision) -> str:
    """Returns how to use a LoRA, as Markdown.

    Args:
        lora: section `train.adapter`.
        base: folder of the base.
        facts: what is stated about the run.
        precision: that of its weights.
    """
    pipeline, clip_skip = read_object(base / "model_index.json")["_class_name"], int(facts.base.get("clip_skip") or 0)
    scheduler = load_scheduler(base, facts.scheduler_changes)
    changed = [name for name in (*facts.scheduler_changes, "clip_sample") if name in scheduler.config]
    notes = "\n\nIt was trained on captions encoded without the last {} layers of the text encoder: use it with {}.".format(
        clip_skip, f"`clip_skip={clip_skip}` in diffusers, and `Clip skip {clip_skip + 1}` in other programs"
    )
    return _USE.format(
        rank=lora.rank,
        imported=", ".join(sorted({pipeline, type(scheduler).__name__} if facts.scheduler_changes else {pipeline})),
        pipeline=pipeline,
        base=facts.base.get("source") or "path/to/the/base",
        dtype=DTYPES["fp16" if precision == "fp32" else precision],
        scheduler=_SCHEDULER.format(
            scheduler=type(scheduler).__name__, changes=", ".join(f"{name}={scheduler.config[name]!r}" for name in changed)
        )
        if facts.scheduler_changes
        else "",
        height=facts.size_px[0],
        width=facts.size_px[1],
        others=_DORA if lora.dora else _KOHYA,
        notes=notes if clip_skip else "",
    )
