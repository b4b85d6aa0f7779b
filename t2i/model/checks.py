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

ANOTHER_BASE = "choose another base (`base.hub` or `base.local`)"
SPECIAL_UNETS = {
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
            remedy = ANOTHER_BASE
            if other == f"{wanted_class}WithProjection":
                remedy = (
                    f"remove the projection with `{wanted_class}.from_pretrained(folder).save_pretrained(folder)`, and write "
                    f"{wanted_class} into model_index.json"
                )
            raise ValueError(f"{name}: is a {other}, wanted a {wanted_class}; {remedy}")
        if "quantization_config" in config:
            raise ValueError(f"{name}: its weights are quantized, wanted float weights; {ANOTHER_BASE}")


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
        raise ValueError(
            f"scheduler: {name}: {in_one_line(error).split('.')[0]}: install it, or choose another scheduler"
        ) from None
    except Exception as error:  # their constructors check little: TypeError, NotImplementedError, ImportError, ...
        raise ValueError(
            f"scheduler: {name} cannot be built from scheduler_config.json ({in_one_line(error)}); restore it"
        ) from None
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
            "Stable Diffusion 1.x and 2.x, 0.13025 for SDXL)"
        )
    if shift is not None and not _is_finite(shift):
        raise ValueError(f"{file}: got shift_factor = {shift!r}, wanted a number or null: restore the original file")
    if config.latents_mean is not None or config.latents_std is not None:
        raise ValueError(
            f"{file}: normalizes its latents by mean and standard deviation (latents_mean, latents_std, as Playground 2.5), "
            f"wanted scaling_factor alone; {ANOTHER_BASE}"
        )
    if (config.in_channels, config.out_channels) != (3, 3):
        raise ValueError(
            f"{file}: got {config.in_channels} and {config.out_channels} channels of images, wanted 3; {ANOTHER_BASE}"
        )
    channels: int = config.latent_channels
    return channels


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
        what = SPECIAL_UNETS.get(config.in_channels - latent_channels, "the UNet and the VAE are of different models")
        raise ValueError(
            f"{unet.name}: takes {config.in_channels} channels and returns {config.out_channels}, wanted {latent_channels}, as "
            f"the VAE's latents have: {what}; {ANOTHER_BASE}"
        )
    if config.cross_attention_dim != width:
        raise ValueError(
            f"{unet.name}: takes embeddings of width {config.cross_attention_dim} (cross_attention_dim), but the text encoder "
            f"gives {width}: they are of different models; {ANOTHER_BASE}"
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
        cause = f"it needs more inputs ({', '.join(needs)})" if needs else in_one_line(error)
        raise ValueError(f"{name}: cannot be called with latents and captions alone: {cause}; {ANOTHER_BASE}") from None
    if shape != latents.shape:
        raise ValueError(f"{name}: returns latents of another shape than it takes ({list(shape)}); {ANOTHER_BASE}")


_FURTHER_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


def check_fit(
    base: Path, moments: Tensor, conditioning: Mapping[str, Tensor], latent_channels: int, widths: Mapping[str, int]
) -> None:
    """Checks that cached records fit a UNet.

    Args:
        base: the folder of its pipeline.
        moments: cached moments [..., m, h, w].
        conditioning: what the caches give the UNet.
        latent_channels: channels of the latents that it takes.
        widths: the last axis of each conditioning tensor that it takes.

    Raises:
        ValueError: if they differ: the caches are from another base.
    """
    cached = (moments.shape[-3] // 2, {name: tensor.shape[-1] for name, tensor in conditioning.items()})
    if cached != (latent_channels, dict(widths)):
        raise ValueError(
            f"the caches have latents with {cached[0]} channels and conditioning of widths {cached[1]}, but the UNet of "
            f"{base} takes {latent_channels} and {dict(widths)}: the caches are from another base; run `dvc repro`"
        )


def _built(kind: Any, model: Path) -> Any:
    """Returns a model of diffusers without weights, on the device `meta`."""
    try:
        with torch.device("meta"):
            return kind.from_config(read_object(model / "config.json"))
    except Exception as error:  # their constructors check little: TypeError, KeyError, ...
        raise ValueError(
            f"{model.name}: no {kind.__name__} can be built from its config.json ({in_one_line(error)}); restore that file"
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


def in_one_line(error: BaseException) -> str:
    """Returns the message of another library's error, shortened to one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def on_meta(*shape: int) -> Tensor:
    """Returns a tensor that has a shape and no values."""
    return torch.empty(shape, device="meta")
