"""Family `stable_diffusion`: Stable Diffusion 1.x and 2.x, and every other checkpoint that StableDiffusionPipeline loads.

Widths, lengths, prediction type and scaling are read from the configuration files of the checkpoint.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from t2i.data.caches import ZEROS_FOR_EMPTY_PROMPT
from t2i.data.crops import Geometry, Size
from t2i.model.base import NOT_TAKEN
from t2i.model.checks import check_fit, check_models, check_scheduler, check_unet, check_vae, on_meta
from t2i.model.export import export
from t2i.model.family import Drawing
from t2i.model.layout import read_object
from t2i.model.precision import Precision
from t2i.model.pretrained import Change, assemble, frozen, load_unet, placed
from t2i.model.schedule import load_scheduler, read_schedule
from t2i.model.text import TextEncoder, check_text, load_text_encoder
from t2i.model.vae import decode_latents, encode_pixels, load_vae, read_scaling

PARTS = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
"""The parts of a pipeline that this family uses."""


class Family:
    """A checkpoint in a folder; each part is loaded on first use.

    Args:
        folder: the checkpoint, in diffusers layout.
        scheduler_changes: changes to its scheduler configuration, with the names of diffusers.
        change: changes each weight of its UNet.

    Raises:
        ValueError: if the prediction type is not supported, or is epsilon at zero terminal SNR, where it is undefined (0 / 0).
    """

    pipeline_class = "StableDiffusionPipeline"

    def __init__(
        self, folder: Path, scheduler_changes: Mapping[str, Any] = MappingProxyType({}), change: Change | None = None
    ) -> None:
        self.folder, self._scheduler_changes, self._change = folder, dict(scheduler_changes), change
        self._scaling = read_scaling(folder / "vae")
        self.scaling_factor, self.shift_factor, self.vae_factor = self._scaling
        self.alphas_cumprod, self.prediction_type = read_schedule(folder, self._scheduler_changes)

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
        if read_object(folder / "model_index.json").get(ZEROS_FOR_EMPTY_PROMPT):
            raise ValueError(
                "`base.empty_prompt` is zeros, but StableDiffusionPipeline encodes the empty prompt: set it to auto"
            )
        check_scheduler(folder)
        text = check_text(folder / "tokenizer", folder / "text_encoder")
        check_unet(folder / "unet", check_vae(folder / "vae"), {"encoder_hidden_states": on_meta(1, text.tokens, text.width)})
        family = Family(folder)
        if any(folder.glob("*/*.safetensors")):
            family.load_vae("cpu")
            family.load_text("cpu")

    def load_vae(self, device: str) -> nn.Module:
        """Returns the AutoencoderKL in fp32, frozen."""
        return load_vae(self.folder / "vae", device)

    def encode_pixels(self, vae: Any, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b m _ _"]:
        """Returns the unscaled mean and log-variance."""
        return encode_pixels(vae, pixels)

    def decode_latents(self, vae: Any, latents: Float[Tensor, "b c _ _"]) -> Float[Tensor, "b 3 h w"]:
        """Returns the pixels of scaled latents."""
        return decode_latents(vae, latents, self._scaling)

    def load_text(self, device: str) -> TextEncoder:
        """Returns the text encoder with its tokenizer, in fp32, frozen."""
        from transformers import CLIPTextModel

        return load_text_encoder(CLIPTextModel, self.folder / "tokenizer", self.folder / "text_encoder", device)

    def encode_prompts(self, text: TextEncoder, captions: Sequence[str]) -> dict[str, Tensor]:
        """Returns `encoder_hidden_states` [b, tokens, width]: the last hidden state after the final layer norm, unmasked."""
        with torch.no_grad():
            return {"encoder_hidden_states": text.model(text.tokens(captions)).last_hidden_state}

    def encode_empty_prompt(self, text: TextEncoder) -> dict[str, Tensor]:
        """Returns the conditioning of the prompt "", which StableDiffusionPipeline encodes like any other."""
        return self.encode_prompts(text, [""])

    def count_truncated(self, text: TextEncoder, captions: Sequence[str]) -> int:
        """Returns the number of captions that the tokenizer truncates."""
        return sum(text.truncates(captions))

    def view_conditioning(self, geometry: Geometry, latents: Size) -> dict[str, Tensor]:
        """Returns no tensors: the UNet is not told how a view was cut."""
        del geometry, latents
        return {}

    def load_unet(self, *, random: bool) -> nn.Module:
        """Returns the UNet2DConditionModel in fp32, with the weights of the checkpoint or, if `random`, random ones."""
        return load_unet(self.folder / "unet", self._change, random=random)

    def check_fit(self, unet: Any, moments: Float[Tensor, "_ m h w"], conditioning: dict[str, Tensor]) -> None:
        """Raises a ValueError if the cached records do not fit the UNet."""
        wanted = {"encoder_hidden_states": unet.config.cross_attention_dim}
        check_fit(self.folder, moments, conditioning, unet.config.in_channels, wanted)

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

    def export(self, weights: Mapping[str, Tensor], out: Path, precision: Precision) -> None:
        """Writes a complete pipeline: this checkpoint with the given UNet weights and the changed scheduler."""
        scheduler = load_scheduler(self.folder, self._scheduler_changes) if self._scheduler_changes else None
        export(self.folder, self.pipeline_class, weights, scheduler, out, precision)

    @cached_property
    def _pipeline(self) -> Any:
        text = self.load_text("cpu")
        return self._assembled(
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            unet=frozen(self.load_unet(random=False), "cpu"),
            vae=self.load_vae("cpu"),
        )

    def _assembled(self, **given: Any) -> Any:
        """Returns a StableDiffusionPipeline with the given parts and the changed scheduler."""
        from diffusers import StableDiffusionPipeline

        given |= {"scheduler": load_scheduler(self.folder, self._scheduler_changes), "requires_safety_checker": False}
        return assemble(StableDiffusionPipeline, self.folder, **given, **dict.fromkeys(NOT_TAKEN))

    def sample(self, prompts: Sequence[str], generators: Sequence[torch.Generator], how: Drawing) -> list[Image.Image]:
        """Returns one image per prompt, drawn by StableDiffusionPipeline with the scheduler of the checkpoint."""
        drawn: list[Image.Image] = placed(self._pipeline, how.device, how.precision, offload=how.offload)(
            prompt=list(prompts),
            negative_prompt=[how.negative_prompt] * len(prompts),
            generator=list(generators),
            num_inference_steps=how.num_inference_steps,
            guidance_scale=how.guidance_scale,
            height=how.size_px[0],
            width=how.size_px[1],
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
        pipeline = self._assembled(unet=unet, vae=None, text_encoder=None, tokenizer=None)
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
