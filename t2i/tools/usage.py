"""Usage: what kind of model a folder holds, a pipeline or an adapter, and how it is loaded and described on the Hub."""

from pathlib import Path
from typing import Any, NamedTuple

from t2i.model.layout import read_object
from t2i.model.precision import Precision
from t2i.tools.licences import Origin
from t2i.train.card import usage

_ADAPTER = "adapter.json"
_LORA = "pytorch_lora_weights.safetensors"
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


def usage_of(model: Path, base: Origin, place: str, precision: Precision, prompt: str, settings: dict[str, Any]) -> Usage:
    """Returns what depends on the kind of the model in a folder.

    Args:
        model: the folder that `train` wrote.
        base: the base of the model.
        place: where the model will be: a name on the Hub, or words for a folder.
        precision: that of the weights.
        prompt: a prompt for the code.
        settings: the other arguments of the call that draws.

    Raises:
        ValueError: if the folder holds no model.
    """
    if (model / _ADAPTER).is_file():
        return _adapter(model, base, place, precision, prompt, settings)
    pipeline = read_object(model / "model_index.json")["_class_name"]
    return Usage(
        says="This is a complete diffusers pipeline. Its UNet was fine-tuned and has the EMA weights.",
        code=usage(pipeline, place, precision, prompt, settings),
        metadata=_metadata(base, "finetune", [_TAGS.get(pipeline, "stable-diffusion")]),
        weights="unet/diffusion_pytorch_model.safetensors",
    )


def _adapter(model: Path, base: Origin, place: str, precision: Precision, prompt: str, settings: dict[str, Any]) -> Usage:
    about = read_object(model / _ADAPTER)
    pipeline = about.get("pipeline", "DiffusionPipeline")
    trigger = about.get("instance_prompt")
    then = f'pipeline.load_lora_weights("{place}", weight_name="{_LORA}")\n'
    source = base.name if base.hub else f"path/to/{base.name}"
    says = f"`{_LORA}` is a LoRA adapter in the format of diffusers and peft: it needs its base model."
    if (model / "lora.safetensors").is_file():
        says += " `lora.safetensors` has the same weights in the format of ComfyUI and AUTOMATIC1111."
    metadata = _metadata(base, "adapter", [_TAGS.get(pipeline, "stable-diffusion"), "lora"])
    if trigger:
        says += f" Its prompts name `{trigger}`."
        metadata["instance_prompt"] = trigger
    return Usage(says, usage(pipeline, source, precision, prompt, settings, then), metadata, _LORA)


def _metadata(base: Origin, relation: str, tags: list[str]) -> dict[str, Any]:
    """Returns the metadata that a kind of model decides; the Hub knows a base only by its name there."""
    named = {"base_model": base.name, "base_model_relation": relation} if base.hub else {}
    return {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", *tags, "t2i"],
        **named,
    }
