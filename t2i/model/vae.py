"""The VAE of a pipeline: encodes pixels as moments, and decodes latents."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t2i.model.layout import read_object
from t2i.model.pretrained import frozen, load_pretrained


class Scaling(NamedTuple):
    """How scaled latents are made from the VAE's: `(latents - shift_factor) * scaling_factor`."""

    scaling_factor: float
    shift_factor: float
    vae_factor: int
    """Height and width in pixels of one latent."""


def read_scaling(vae: Path) -> Scaling:
    """Returns what the configuration of an AutoencoderKL says about its latents.

    Raises:
        ValueError: if it is not the configuration of an AutoencoderKL.
    """
    config = read_object(vae / "config.json")
    if "block_out_channels" not in config:
        raise ValueError(f"{vae / 'config.json'}: no `block_out_channels`, wanted an AutoencoderKL's configuration")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return Scaling(config.get("scaling_factor", 0.18215), config.get("shift_factor") or 0.0, factor)


def load_vae(vae: Path, device: str) -> nn.Module:
    """Returns an AutoencoderKL in fp32, frozen."""
    from diffusers import AutoencoderKL

    return frozen(load_pretrained(AutoencoderKL, vae), device)


def encode_pixels(vae: Any, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b m _ _"]:
    """Returns the unscaled mean and log-variance."""
    with torch.no_grad():
        moments: Tensor = vae.encode(pixels).latent_dist.parameters
    return moments


def decode_latents(vae: Any, latents: Float[Tensor, "b c _ _"], scaling: Scaling) -> Float[Tensor, "b 3 h w"]:
    """Returns the pixels of scaled latents."""
    with torch.no_grad():
        pixels: Tensor = vae.decode(latents / scaling.scaling_factor + scaling.shift_factor).sample
    return pixels
