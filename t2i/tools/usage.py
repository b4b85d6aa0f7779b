"""Usage: what kind of model a folder holds, a pipeline or an adapter, and how it is loaded and described on the Hub."""

from pathlib import Path
from typing import Any, NamedTuple

from t2i.model.adapter import ADAPTER_FILE
from t2i.model.adapters.lora.use import clip_skip_note, code_for, others
from t2i.model.layout import read_object
from t2i.model.precision import Precision
from t2i.model.usage import drawing_code
from t2i.tools.licences import Origin

_TAGS = {"StableDiffusionPipeline": "stable-diffusion", "StableDiffusionXLPipeline": "stable-diffusion-xl"}


class Usage(NamedTuple):
    """What depends on the kind of model."""

    says: str
    """One sentence about the files."""
    code: str
    """Python code that draws an image."""
    metadata: dict[str, Any]
    """Its part of the card's metadata."""
    weights: str
    """The path of the trained weights in the folder."""


def usage_of(
    model: Path, base: Origin, place: str, precision: Precision, prompt: str, settings: dict[str, Any], scale: float
) -> Usage:
    """Returns what depends on the kind of the model in a folder.

    Args:
        model: the folder that `train` wrote.
        base: the base of the model.
        place: where the model will be: a name on the Hub, or words for a folder.
        precision: that of the weights.
        prompt: a prompt for the code.
        settings: the other arguments of the call that draws.
        scale: strength of an adapter in the evaluation.

    Raises:
        ValueError: if the folder holds no model.
    """
    if (model / ADAPTER_FILE).is_file():
        return _adapter(model, base, place, precision, prompt, settings, scale)
    pipeline = read_object(model / "model_index.json")["_class_name"]
    return Usage(
        says="This is a complete diffusers pipeline. Its UNet was fine-tuned and has the EMA weights.",
        code=drawing_code(pipeline, place, precision, prompt, settings),
        metadata=_metadata(base, "finetune", [_TAGS.get(pipeline, "stable-diffusion")]),
        weights="unet/diffusion_pytorch_model.safetensors",
    )


def _adapter(
    model: Path, base: Origin, place: str, precision: Precision, prompt: str, settings: dict[str, Any], scale: float
) -> Usage:
    about, origin = read_object(model / ADAPTER_FILE), read_object(model / "source.json")
    skipped = int(origin.get("clip_skip") or 0)
    if not base.hub:
        origin["source"] = f"path/to/{base.name}"
    says = [f"This is a LoRA of rank {about['rank']}, which needs its base model.", others(about)]
    says += [f"The metrics and pictures show it at a strength of {scale:g}."] if scale != 1 else []
    says += [clip_skip_note(skipped)] if skipped else []
    return Usage(
        says=" ".join(says),
        code=code_for(about, origin, place, precision, prompt, settings, scale),
        metadata=_metadata(base, "adapter", [_TAGS.get(about["pipeline"], "stable-diffusion"), "lora"]),
        weights=str(about["weights"]),
    )


def _metadata(base: Origin, relation: str, tags: list[str]) -> dict[str, Any]:
    """Returns the metadata that a kind of model decides; the Hub knows a base only by its name there."""
    named = {"base_model": base.name, "base_model_relation": relation} if base.hub else {}
    return {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", *tags, "t2i"],
        **named,
    }
