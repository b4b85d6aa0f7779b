"""Family `stable_diffusion`: Stable Diffusion 1.x and 2.x, and every other checkpoint that StableDiffusionPipeline loads.

Widths, lengths, prediction type and scaling are read from the configuration files of the checkpoint.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from t2i.model.base import NOT_TAKEN
from t2i.model.checks import check_models, check_scheduler, check_text, check_unet, check_vae, on_meta
from t2i.model.export import export
from t2i.model.prediction import PredictionType
from t2i.model.pretrained import load_pretrained

PARTS = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
"""The parts of a pipeline that this family uses."""


class Text(NamedTuple):
    """Tokenizer and text encoder."""

    tokenizer: Any
    encoder: nn.Module


class Family:
    """A checkpoint in a folder; each part is loaded on first use.

    Args:
        folder: the checkpoint, in diffusers layout.
        scheduler_changes: changes to its scheduler configuration, with the names of diffusers.

    Raises:
        ValueError: if the prediction type is not supported, or is epsilon at zero terminal SNR, where it is undefined (0 / 0).
    """

    def __init__(self, folder: Path, scheduler_changes: Mapping[str, Any] = MappingProxyType({})) -> None:
        from diffusers import DDPMScheduler

        self.folder, self._scheduler_changes = folder, dict(scheduler_changes)
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        self.scaling_factor: float = vae.get("scaling_factor", 0.18215)
        self.shift_factor: float = vae.get("shift_factor") or 0.0
        if "block_out_channels" not in vae:
            raise ValueError(f"{folder / 'vae/config.json'}: no `block_out_channels`, wanted an AutoencoderKL's configuration")
        self.vae_factor: int = 2 ** (len(vae["block_out_channels"]) - 1)
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", **self._scheduler_changes)
        self.alphas_cumprod: Float[Tensor, " timesteps"] = scheduler.alphas_cumprod.float()
        if scheduler.config.prediction_type not in get_args(PredictionType):
            raise ValueError(
                f"{folder}: the prediction type is {scheduler.config.prediction_type!r}, "
                f"wanted {' or '.join(get_args(PredictionType))}"
            )
        if scheduler.config.prediction_type == "epsilon" and self.alphas_cumprod[-1] == 0:
            raise ValueError(
                f"{folder}: the prediction type epsilon does not work at zero terminal SNR: set "
                + (
                    "`train.objective.prediction_type` to v_prediction, or `zero_terminal_snr` to false"
                    if self._scheduler_changes
                    else "prediction_type in scheduler/scheduler_config.json of the base to v_prediction"
                )
            )
        self.prediction_type: PredictionType = scheduler.config.prediction_type

    @staticmethod
    def owns(index: Mapping[str, Any]) -> bool:
        """Returns whether a pipeline is of this family, from its model_index.json."""
        return index.keys() >= PARTS and "text_encoder_2" not in index

    @staticmethod
    def check_base(folder: Path) -> None:
        """Checks that a pipeline can be encoded and trained: its configurations and, if they are there, its weights.

        The VAE and the text encoder are loaded; of the UNet, only the names and shapes of the tensors are read.

        Raises:
            ValueError: names the part, what was got, what was wanted, and a remedy.
        """
        check_models(folder, {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"})
        check_scheduler(folder)
        tokens, width = check_text(folder / "tokenizer", folder / "text_encoder")
        check_unet(folder / "unet", check_vae(folder / "vae"), {"encoder_hidden_states": on_meta(1, tokens, width)})
        family = Family(folder)
        if any(folder.glob("*/*.safetensors")):
            family.load_vae("cpu")
            family.load_text("cpu")

    def load_vae(self, device: str) -> nn.Module:
        """Returns the AutoencoderKL in fp32, frozen."""
        from diffusers import AutoencoderKL

        return _frozen(load_pretrained(AutoencoderKL, self.folder / "vae"), device)

    def encode_pixels(self, vae: Any, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b m _ _"]:
        """Returns the unscaled mean and log-variance."""
        with torch.no_grad():
            moments: Tensor = vae.encode(pixels).latent_dist.parameters
        return moments

    def decode_latents(self, vae: Any, latents: Float[Tensor, "b c _ _"]) -> Float[Tensor, "b 3 h w"]:
        """Returns the pixels of scaled latents."""
        with torch.no_grad():
            pixels: Tensor = vae.decode(latents / self.scaling_factor + self.shift_factor).sample
        return pixels

    def load_text(self, device: str) -> Text:
        """Returns the tokenizer and the text encoder in fp32, frozen."""
        from transformers import CLIPTextModel, CLIPTokenizer

        encoder = _frozen(load_pretrained(CLIPTextModel, self.folder / "text_encoder"), device)
        return Text(CLIPTokenizer.from_pretrained(self.folder / "tokenizer"), encoder)

    def encode_prompts(self, text: Text, captions: Sequence[str]) -> dict[str, Tensor]:
        """Returns `encoder_hidden_states` [b, tokens, width]: the last hidden state after the final layer norm, unmasked."""
        tokens = text.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            return {"encoder_hidden_states": text.encoder(tokens.to(text.encoder.device)).last_hidden_state}

    def count_truncated(self, text: Text, captions: Sequence[str]) -> int:
        """Returns the number of captions that the tokenizer truncates."""
        lengths = [len(tokens) for tokens in text.tokenizer(list(captions), verbose=False).input_ids]
        return sum(length > text.tokenizer.model_max_length for length in lengths)

    def load_unet(self, *, random: bool) -> nn.Module:
        """Returns the UNet2DConditionModel in fp32, with the weights of the base or, if `random`, with random weights."""
        from diffusers import UNet2DConditionModel

        if random:
            unet: nn.Module = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(self.folder, subfolder="unet"))
            return unet
        pretrained: nn.Module = load_pretrained(UNet2DConditionModel, self.folder / "unet")
        return pretrained

    def check_fit(self, unet: Any, moments: Float[Tensor, "_ m h w"], conditioning: dict[str, Tensor]) -> None:
        """Raises a ValueError if the cached records do not fit the UNet."""
        cached = (moments.shape[1] // 2, conditioning["encoder_hidden_states"].shape[-1])
        wanted = (unet.config.in_channels, unet.config.cross_attention_dim)
        if cached != wanted:
            raise ValueError(
                f"the caches have latents with {cached[0]} channels and embeddings of width {cached[1]}, but the UNet of "
                f"{self.folder} takes {wanted[0]} and {wanted[1]}: the caches are from another base; run `dvc repro`"
            )

    def predict(
        self,
        unet: nn.Module,
        noisy_latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        conditioning: dict[str, Tensor],
    ) -> Float[Tensor, "b c h w"]:
        """Returns the prediction of the UNet."""
        prediction: Tensor = unet(noisy_latents, timesteps, **conditioning, return_dict=False)[0]
        return prediction

    def export(self, weights: Mapping[str, Tensor], out: Path) -> None:
        """Writes a complete pipeline in fp32: this checkpoint with the given UNet weights and the changed scheduler."""
        export(self.folder, weights, self._sampling_scheduler() if self._scheduler_changes else None, out)

    def _sampling_scheduler(self) -> Any:
        """Returns the scheduler of the checkpoint with the changes; a DDIMScheduler if it does not support all of them."""
        import diffusers

        index = json.loads((self.folder / "model_index.json").read_text(encoding="utf-8"))
        kind, changes = getattr(diffusers, index["scheduler"][1]), self._scheduler_changes
        if changes.keys() - inspect.signature(kind.__init__).parameters.keys():
            kind, changes = diffusers.DDIMScheduler, changes | {"clip_sample": False}  # latents are not in [-1, 1]
        return kind.from_pretrained(self.folder, subfolder="scheduler", **changes)

    @cached_property
    def _pipeline(self) -> Any:
        text = self.load_text("cpu")
        return self._assembled(
            text_encoder=text.encoder, tokenizer=text.tokenizer, unet=self.load_unet(random=False), vae=self.load_vae("cpu")
        )

    def _assembled(self, **parts: Any) -> Any:
        """Returns a StableDiffusionPipeline with the given parts, without progress bars."""
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging

        logging.disable_progress_bar()
        pipeline = StableDiffusionPipeline.from_pretrained(
            self.folder, **parts, **dict.fromkeys(NOT_TAKEN), use_safetensors=True, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

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
        """Returns one image per prompt, drawn by StableDiffusionPipeline with the scheduler of the checkpoint."""
        drawn: list[Image.Image] = self._pipeline.to(device)(
            prompt=list(prompts),
            negative_prompt=[negative_prompt] * len(prompts),
            generator=list(generators),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            height=size_px,
            width=size_px,
        ).images
        return drawn

    def sample_latents(
        self,
        unet: nn.Module,
        conditioning: dict[str, Tensor],
        unconditional: dict[str, Tensor],
        noise: Float[Tensor, "b c h w"],
        generators: Sequence[torch.Generator],
        *,
        num_inference_steps: int,
        guidance_scale: float,
    ) -> Float[Tensor, "b c h w"]:
        """Returns scaled latents, sampled by StableDiffusionPipeline without a VAE or a text encoder."""
        pipeline = self._assembled(unet=unet, scheduler=self._sampling_scheduler(), vae=None, text_encoder=None, tokenizer=None)
        sampled: Tensor = pipeline(
            prompt_embeds=conditioning["encoder_hidden_states"],
            negative_prompt_embeds=unconditional["encoder_hidden_states"].expand_as(conditioning["encoder_hidden_states"]),
            latents=noise,
            generator=list(generators),
            height=8 * noise.shape[2],  # without a VAE, the pipeline assumes a factor of 8
            width=8 * noise.shape[3],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            output_type="latent",
        ).images
        return sampled


def _frozen(model: Any, device: str) -> nn.Module:
    frozen: nn.Module = model.requires_grad_(False).eval().to(device)
    return frozen
