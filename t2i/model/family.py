"""Families: what a kind of Stable Diffusion must offer, and how one is chosen.

A family is a module of t2i/model/families with a class `Family` of this form. It hides its conditioning: `encode_prompts` gives
named tensors, they are stored as they are, and given back to `predict`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from t2i.core.params import load_section, resolve_plugin
from t2i.model.base import Base
from t2i.model.prediction import PredictionType

Conditioning = dict[str, Tensor]
"""Named tensors [b, ...]: all the UNet takes besides latents and timesteps."""


@runtime_checkable
class Family(Protocol):
    """One checkpoint in diffusers' layout; nothing is loaded before it is asked for."""

    folder: Path
    """Where it lies."""
    alphas_cumprod: Float[Tensor, " timesteps"]
    prediction_type: PredictionType
    scaling_factor: float
    shift_factor: float
    vae_factor: int
    """Pixels a side of a latent stands for."""

    def load_vae(self, device: str) -> nn.Module:
        """Returns the VAE in fp32, frozen."""
        ...

    def encode_pixels(self, vae: nn.Module, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b m _ _"]:
        """Returns the moments, unscaled."""
        ...

    def decode_latents(self, vae: nn.Module, latents: Float[Tensor, "b c _ _"]) -> Float[Tensor, "b 3 h w"]:
        """Returns pixels of scaled latents."""
        ...

    def load_text(self, device: str) -> Any:
        """Returns what encode_prompts needs: tokenizers and text encoders in fp32, frozen."""
        ...

    def encode_prompts(self, text: Any, captions: Sequence[str]) -> Conditioning:
        """Returns the conditioning of some captions."""
        ...

    def count_truncated(self, text: Any, captions: Sequence[str]) -> int:
        """Returns how many captions are longer than the tokenizer lets through."""
        ...

    def load_unet(self, *, random: bool) -> nn.Module:
        """Returns the UNet in fp32: the base's weights, or random ones for the same configuration."""
        ...

    def check_fit(self, unet: nn.Module, moments: Float[Tensor, "_ m h w"], conditioning: Conditioning) -> None:
        """Raises a ValueError where a record of the caches is none that the UNet takes."""
        ...

    def predict(
        self, unet: nn.Module, noisy_latents: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Returns the UNet's prediction."""
        ...

    def export(self, weights: Mapping[str, Tensor], out: Path) -> None:
        """Writes a complete pipeline: this checkpoint with other UNet weights."""
        ...

    def sample(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        *,
        num_inference_steps: int,
        guidance_scale: float,
        negative_prompt: str,
        size_px: int,
        device: str,
    ) -> list[Image.Image]:
        """Returns an image a prompt, from the complete pipeline."""
        ...

    def sample_latents(
        self,
        unet: nn.Module,
        conditioning: Conditioning,
        unconditional: Conditioning,
        noise: Float[Tensor, "b c h w"],
        generators: Sequence[torch.Generator],
        *,
        num_inference_steps: int,
        guidance_scale: float,
    ) -> Float[Tensor, "b c h w"]:
        """Returns scaled latents sampled from noise and cached conditioning: no VAE and no text encoder is loaded.

        `generators`, one an image, are for schedulers that draw noise at every step.
        """
        ...


def file_of(family: Family) -> str:
    """Returns the path below t2i/ of a family's module."""
    return f"{type(family).__module__.removeprefix('t2i.').replace('.', '/')}.py"


def open_family(params_file: Path, folder: Path, scheduler_changes: Mapping[str, Any] = MappingProxyType({})) -> Family:
    """Returns the family that `base.family` names, on the checkpoint in a folder.

    Args:
        params_file: params.yaml.
        folder: the checkpoint, in diffusers' layout.
        scheduler_changes: overrides of its scheduler's configuration, in diffusers' names.

    Raises:
        ValueError: if no pipeline is in the folder.
    """
    name = load_section(params_file, "base", Base).family
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder}: no pipeline is here; run `dvc repro`, or name another folder")
    return load_family(name, folder, scheduler_changes)


def load_family(name: str, folder: Path, scheduler_changes: Mapping[str, Any] = MappingProxyType({})) -> Family:
    """Returns the family `name` (a module of t2i/model/families) on the checkpoint in a folder.

    Args:
        name: the module.
        folder: the checkpoint, in diffusers' layout.
        scheduler_changes: what its scheduler's configuration is overruled by, in diffusers' names.
    """
    family: Family = resolve_plugin("t2i.model.families", name).Family(folder, scheduler_changes)
    return family
