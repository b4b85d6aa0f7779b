"""Checks: what a pipeline must have to be encoded and trained, told from its configuration files before hours of work.

A family calls these functions from `Family.check_base`. Every error names the part of the pipeline, what was got, what was
wanted, and a remedy.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.model.layout import parts, read_object
from t2i.model.pretrained import load_pretrained

_ANOTHER = "choose another base (`base.hub` or `base.local`)"
_SPECIAL_UNETS = {
    1: "this UNet is for depth maps",
    3: "this UNet enlarges images",
    4: "this UNet edits images (InstructPix2Pix)",
    5: "this UNet is for inpainting",
}
"""What a UNet is for, by the number of channels that it takes besides the latents."""


def check_models(pipeline: Path, wanted: Mapping[str, str]) -> None:
    """Checks that the models of a pipeline are of the classes that a family loads.

    Args:
        pipeline: the folder.
        wanted: the class of each model, by the name of its part.

    Raises:
        ValueError: if a model is of another class, or its weights are quantized.
    """
    stated = parts(pipeline)
    for name, wanted_class in wanted.items():
        config = read_object(pipeline / name / "config.json")
        classes = [stated[name][-1], config.get("_class_name"), *(config.get("architectures") or [])]
        if other := next((found for found in classes if found and found != wanted_class), None):
            remedy = _ANOTHER
            if other == f"{wanted_class}WithProjection":
                remedy = (
                    f"remove the projection with `{wanted_class}.from_pretrained(folder).save_pretrained(folder)`, and write "
                    f"{wanted_class} into model_index.json"
                )
            raise ValueError(f"{name}: is a {other}, wanted a {wanted_class}; {remedy}")
        if "quantization_config" in config:
            raise ValueError(f"{name}: its weights are quantized, wanted float weights; {_ANOTHER}")


def check_scheduler(pipeline: Path) -> None:
    """Checks that diffusers has the scheduler and can build it, and that it is of a diffusion model with a noise schedule.

    Raises:
        ValueError: if not; flow matching has no noise schedule, for example.
    """
    import diffusers
    from diffusers.schedulers import KarrasDiffusionSchedulers

    name = parts(pipeline).get("scheduler", ["", "none"])[-1]
    kind: Any = getattr(diffusers, name, None)
    if kind is None or not name.endswith("Scheduler"):
        raise ValueError(f"scheduler: diffusers {diffusers.__version__} has no {name!r}; {_OTHER_SCHEDULER}")
    config = read_object(pipeline / "scheduler" / "scheduler_config.json")
    try:
        built, trained = kind.from_config(config), diffusers.DDPMScheduler.from_config(config)
        if hasattr(built, "betas"):
            built.set_timesteps(10)
    except ImportError as error:
        raise ValueError(f"scheduler: {name}: {_line(error).split('.')[0]}: install it, or choose another scheduler") from None
    except Exception as error:  # their constructors check little: TypeError, NotImplementedError, ImportError, ...
        raise ValueError(f"scheduler: {name} cannot be built from scheduler_config.json ({_line(error)}); restore it") from None
    if not hasattr(built, "betas") or config.get("use_flow_sigmas"):
        raise ValueError(f"scheduler: {name} has no noise schedule (flow matching and EDM have none); {_OTHER_SCHEDULER}")
    if name not in {known.name for known in KarrasDiffusionSchedulers} | _FURTHER_SCHEDULERS:
        raise ValueError(f"scheduler: {name} does not draw images with Stable Diffusion; {_OTHER_SCHEDULER}")
    alphas, timesteps = trained.alphas_cumprod, trained.config.num_train_timesteps
    if len(alphas) != timesteps or not bool(((alphas >= 0) & (alphas < 1)).all()):
        raise ValueError(
            f"scheduler: its noise schedule has {len(alphas)} values of alphas_cumprod from {alphas.max():g} to "
            f"{alphas.min():g}, wanted {timesteps} below 1 and not below 0: restore scheduler_config.json"
        )


_FURTHER_SCHEDULERS = {f"{name}Scheduler" for name in ("DDIMParallel", "DDPMParallel", "LCM", "SASolver", "TCD")}
_OTHER_SCHEDULER = "wanted one for Stable Diffusion, such as DDIMScheduler"


def check_vae(vae: Path) -> int:
    """Returns the number of latent channels of an AutoencoderKL, after checking that it can be built and scales its latents.

    Raises:
        ValueError: if not, or if it is not for RGB images.
    """
    from diffusers import AutoencoderKL

    file, built = f"{vae.name}/config.json", _built(AutoencoderKL, vae)
    config = built.config
    factor, shift = config.scaling_factor, config.shift_factor
    if not _is_finite(factor) or factor <= 0:
        raise ValueError(
            f"{file}: got scaling_factor = {factor!r}, wanted a number above 0: write that of the original VAE (0.18215 for "
            "Stable Diffusion 1.x and 2.x)"
        )
    if shift is not None and not _is_finite(shift):
        raise ValueError(f"{file}: got shift_factor = {shift!r}, wanted a number or null: restore the original file")
    if (config.in_channels, config.out_channels) != (3, 3):
        raise ValueError(f"{file}: got {config.in_channels} and {config.out_channels} channels of images, wanted 3; {_ANOTHER}")
    channels: int = config.latent_channels
    return channels


def check_text(tokenizer: Path, encoder: Path) -> tuple[int, int]:
    """Returns the number of tokens and the width of a CLIP text encoder's output, after checking that its tokenizer fits.

    Raises:
        ValueError: if a file of the tokenizer is missing, or it gives other tokens than the encoder takes.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    check_vocabulary(tokenizer)
    try:
        config = CLIPTextConfig.from_dict(read_object(encoder / "config.json"))
        most, vocabulary = int(config.max_position_embeddings), int(config.vocab_size)
        loaded = CLIPTokenizer.from_pretrained(tokenizer)
        length, largest = loaded.model_max_length, max(loaded.get_vocab().values())
        if isinstance(length, int) and 2 < length <= most:
            loaded([""], padding="max_length", truncation=True)
        with torch.device("meta"):
            CLIPTextModel(config)
    except Exception as error:  # json, tokenizers and transformers raise many types
        raise ValueError(f"{tokenizer.name}, {encoder.name}: cannot be loaded ({_line(error)}); restore their files") from None
    if not isinstance(length, int) or not 2 < length <= most:
        stated = "none" if isinstance(length, int) and length > 10**9 else repr(length)
        raise ValueError(
            f"{tokenizer.name}/tokenizer_config.json: got model_max_length {stated}, wanted a number from 3 to {most}, the "
            f'text encoder\'s max_position_embeddings: write "model_max_length": {most}'
        )
    if largest >= vocabulary:
        raise ValueError(
            f"{tokenizer.name}: has tokens up to {largest}, but the embeddings of {encoder.name} end at {vocabulary - 1} "
            f"(vocab_size): they are of different models; restore both, or {_ANOTHER}"
        )
    return length, int(config.hidden_size)


def check_vocabulary(tokenizer: Path) -> None:
    """Checks that a CLIP tokenizer knows words: without its files, transformers loads an empty vocabulary.

    Raises:
        ValueError: if a file is missing, or has no words.
    """
    whole, missing = tokenizer / "tokenizer.json", [name for name in _VOCABULARY if not (tokenizer / name).is_file()]
    if missing and not whole.is_file():
        raise ValueError(f"{tokenizer / missing[0]}: missing; restore it, or add tokenizer.json")
    stored = (read_object(whole).get("model") or {}).get("vocab") if whole.is_file() else read_object(tokenizer / "vocab.json")
    if not stored:
        raise ValueError(f"{whole if whole.is_file() else tokenizer / 'vocab.json'}: no words; restore the original file")


_VOCABULARY = ("vocab.json", "merges.txt")


def check_unet(unet: Path, latent_channels: int, conditioning: Mapping[str, Any]) -> None:
    """Checks that a UNet denoises the VAE's latents from the family's conditioning, by a call without weights.

    If its weights are there, also checks that they have exactly the names and shapes that config.json expects.

    Args:
        unet: folder of a UNet2DConditionModel.
        latent_channels: channels of the VAE's latents.
        conditioning: what the family gives to the UNet for one image: tensors on the device `meta`.

    Raises:
        ValueError: if the call fails, or the weights do not fit.
    """
    from diffusers import UNet2DConditionModel

    built = _built(UNet2DConditionModel, unet)
    config, width = built.config, conditioning["encoder_hidden_states"].shape[-1]
    if (config.in_channels, config.out_channels) != (latent_channels, latent_channels):
        what = _SPECIAL_UNETS.get(config.in_channels - latent_channels, "the UNet and the VAE are of different models")
        raise ValueError(
            f"{unet.name}: takes {config.in_channels} channels and returns {config.out_channels}, wanted {latent_channels}, as "
            f"the VAE's latents have: {what}; {_ANOTHER}"
        )
    if config.cross_attention_dim != width:
        raise ValueError(
            f"{unet.name}: takes embeddings of width {config.cross_attention_dim} (cross_attention_dim), but the text encoder "
            f"gives {width}: they are of different models; {_ANOTHER}"
        )
    _call(built, unet.name, on_meta(1, latent_channels, 64, 64), conditioning)
    wanted = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    if (stored := _shapes(unet)) and stored != wanted:
        load_pretrained(UNet2DConditionModel, unet)  # names the tensor, or accepts the names of older checkpoints


def _call(unet: Any, name: str, latents: Tensor, conditioning: Mapping[str, Any]) -> None:
    try:
        shape = unet(latents, torch.zeros(1, dtype=torch.long, device="meta"), **conditioning)[0].shape
    except Exception as error:  # a call that lacks an input fails anywhere inside
        needs = [f"{key} {unet.config[key]!r}" for key in _FURTHER_INPUTS if unet.config.get(key) is not None]
        cause = f"it needs more inputs ({', '.join(needs)})" if needs else _line(error)
        raise ValueError(f"{name}: cannot be called with latents and captions alone: {cause}; {_ANOTHER}") from None
    if shape != latents.shape:
        raise ValueError(f"{name}: returns latents of another shape than it takes ({list(shape)}); {_ANOTHER}")


_FURTHER_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


def _built(kind: Any, model: Path) -> Any:
    """Returns a model of diffusers without weights, on the device `meta`."""
    try:
        with torch.device("meta"):
            return kind.from_config(read_object(model / "config.json"))
    except Exception as error:  # their constructors check little: TypeError, KeyError, ...
        raise ValueError(
            f"{model.name}: no {kind.__name__} can be built from its config.json ({_line(error)}); restore the original file"
        ) from None


def _shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor in a model's safetensors files, from their headers."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in model.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def on_meta(*shape: int) -> Tensor:
    """Returns a tensor that has a shape and no values."""
    return torch.empty(shape, device="meta")
