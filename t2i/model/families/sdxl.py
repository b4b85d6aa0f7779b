"""Family `sdxl`: Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952), and what StableDiffusionXLPipeline loads.

The UNet is told the caption, encoded by two text encoders, and how the view was cut from its image (section 2.2, "time ids").
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
from t2i.data.crops import Geometry, Size, covering
from t2i.data.pixels import to_image
from t2i.model.checks import ANOTHER_BASE, check_fit, check_models, check_scheduler, check_unet, check_vae, on_meta
from t2i.model.export import export
from t2i.model.family import Drawing
from t2i.model.layout import read_object
from t2i.model.precision import Precision
from t2i.model.pretrained import Change, assemble, frozen, load_unet, placed
from t2i.model.schedule import load_scheduler, read_schedule
from t2i.model.text import TextEncoder, check_text, load_text_encoder
from t2i.model.vae import decode_latents, encode_pixels, load_vae, read_scaling

_MODELS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
_PARTS = {*_MODELS, "tokenizer", "tokenizer_2", "scheduler"}
_TIME_IDS = 6

Text = tuple[TextEncoder, TextEncoder]
"""The two text encoders; the projected embedding of the second is the pooled embedding."""


class Family:
    """A checkpoint in a folder; each part is loaded on first use.

    Args:
        folder: the checkpoint, in diffusers layout.
        scheduler_changes: changes to its scheduler configuration, with the names of diffusers.
        change: changes each weight of its UNet.

    Raises:
        ValueError: if the prediction type is not supported, or is epsilon at zero terminal SNR, where it is undefined (0 / 0).
    """

    pipeline_class = "StableDiffusionXLPipeline"

    def __init__(
        self, folder: Path, scheduler_changes: Mapping[str, Any] = MappingProxyType({}), change: Change | None = None
    ) -> None:
        self.folder, self._scheduler_changes, self._change = folder, dict(scheduler_changes), change
        self._scaling = read_scaling(folder / "vae")
        self.scaling_factor, self.shift_factor, self.vae_factor = self._scaling
        self.alphas_cumprod, self.prediction_type = read_schedule(folder, self._scheduler_changes)

    @staticmethod
    def owns(index: Mapping[str, Any]) -> bool:
        """Returns whether a pipeline is of this family, from its model_index.json. The refiner lacks the first text encoder."""
        return all(any(index.get(name) or []) for name in _PARTS)

    @staticmethod
    def check_base(folder: Path) -> None:
        """Checks that a pipeline can be encoded and trained: its configurations and, if they are there, its weights.

        The VAE and the text encoders are loaded; of the UNet, only the names and shapes of the tensors are read.

        Raises:
            ValueError: names the part, what was got, what was wanted, and a remedy.
        """
        check_models(folder, _MODELS)
        check_scheduler(folder)
        if (kind := read_object(folder / "unet" / "config.json").get("addition_embed_type")) != "text_time":
            raise ValueError(f"unet: got addition_embed_type = {kind!r}, wanted 'text_time', as SDXL has; {ANOTHER_BASE}")
        first, second = (check_text(folder / f"tokenizer{n}", folder / f"text_encoder{n}") for n in ("", "_2"))
        if first.tokens != second.tokens:
            raise ValueError(
                f"tokenizer, tokenizer_2: got model_max_length {first.tokens} and {second.tokens}, wanted the same: restore "
                "their files"
            )
        added = {"text_embeds": on_meta(1, second.pooled), "time_ids": on_meta(1, _TIME_IDS)}
        hidden = on_meta(1, first.tokens, first.width + second.width)
        check_unet(folder / "unet", check_vae(folder / "vae"), {"encoder_hidden_states": hidden, "added_cond_kwargs": added})
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
        """Returns the pixels of scaled latents, computed in fp32 also where autocast is on: this VAE overflows in fp16."""
        with torch.autocast(latents.device.type, enabled=False):
            return decode_latents(vae, latents.float(), self._scaling)

    def load_text(self, device: str) -> Text:
        """Returns the text encoders with their tokenizers, in fp32, frozen."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        at, kinds = self.folder, {"": CLIPTextModel, "_2": CLIPTextModelWithProjection}
        first, second = (load_text_encoder(k, at / f"tokenizer{n}", at / f"text_encoder{n}", device) for n, k in kinds.items())
        return first, second

    def encode_prompts(self, text: Text, captions: Sequence[str]) -> dict[str, Tensor]:
        """Returns the hidden states and the pooled embedding of captions, unmasked.

        `encoder_hidden_states` [b, tokens, width]: the last hidden states but one of both encoders, side by side, without the
        final layer norm. `text_embeds` [b, pooled]: the projected embedding of the second encoder.
        """
        with torch.no_grad():
            first, second = (encoder.model(encoder.tokens(captions), output_hidden_states=True) for encoder in text)
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"encoder_hidden_states": hidden, "text_embeds": second.text_embeds}

    def encode_empty_prompt(self, text: Text) -> dict[str, Tensor]:
        """Returns the conditioning of the empty prompt: zeros, or its encoding if model_index.json says so."""
        encoded = self.encode_prompts(text, [""])
        zeros = read_object(self.folder / "model_index.json").get(ZEROS_FOR_EMPTY_PROMPT, True)
        return {name: torch.zeros_like(tensor) for name, tensor in encoded.items()} if zeros else encoded

    def count_truncated(self, text: Text, captions: Sequence[str]) -> int:
        """Returns the number of captions that one of the tokenizers truncates."""
        return sum(map(max, zip(*(encoder.truncates(captions) for encoder in text), strict=True)))

    def view_conditioning(self, geometry: Geometry, latents: Size) -> dict[str, Tensor]:
        """Returns `time_ids` [6]: original height and width, top and left of the crop after the flip, height and width."""
        height, width = (side * self.vae_factor for side in latents)
        top, left = geometry.crop
        if geometry.flipped:
            left = covering(geometry.original_size, (height, width))[1] - width - left
        return {"time_ids": torch.tensor([*geometry.original_size, top, left, height, width], dtype=torch.float32)}

    def load_unet(self, *, random: bool) -> nn.Module:
        """Returns the UNet2DConditionModel in fp32, with the weights of the checkpoint or, if `random`, random ones."""
        return load_unet(self.folder / "unet", self._change, random=random)

    def check_fit(self, unet: Any, moments: Float[Tensor, "_ m h w"], conditioning: dict[str, Tensor]) -> None:
        """Raises a ValueError if the cached records do not fit the UNet."""
        pooled = unet.config.projection_class_embeddings_input_dim - _TIME_IDS * unet.config.addition_time_embed_dim
        wanted = {"encoder_hidden_states": unet.config.cross_attention_dim, "text_embeds": pooled, "time_ids": _TIME_IDS}
        check_fit(self.folder, moments, conditioning, unet.config.in_channels, wanted)

    def predict(
        self,
        unet: nn.Module,
        noisy_latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        conditioning: dict[str, Tensor],
    ) -> Float[Tensor, "b c h w"]:
        """Returns the prediction of the UNet."""
        prediction: Tensor = unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=conditioning["encoder_hidden_states"],
            added_cond_kwargs={name: conditioning[name] for name in ("text_embeds", "time_ids")},
            return_dict=False,
        )[0]
        return prediction

    def export(self, weights: Mapping[str, Tensor], out: Path, precision: Precision) -> None:
        """Writes a complete pipeline: this checkpoint with the given UNet weights and the changed scheduler."""
        scheduler = load_scheduler(self.folder, self._scheduler_changes) if self._scheduler_changes else None
        export(self.folder, self.pipeline_class, weights, scheduler, out, precision)

    @cached_property
    def _pipeline(self) -> Any:
        first, second = self.load_text("cpu")
        return self._assembled(
            text_encoder=first.model,
            text_encoder_2=second.model,
            tokenizer=first.tokenizer,
            tokenizer_2=second.tokenizer,
            unet=frozen(self.load_unet(random=False), "cpu"),
            vae=self.load_vae("cpu"),
        )

    def _assembled(self, **given: Any) -> Any:
        """Returns a StableDiffusionXLPipeline with the given parts and the changed scheduler; its images get no watermark."""
        from diffusers import StableDiffusionXLPipeline

        given |= {"scheduler": load_scheduler(self.folder, self._scheduler_changes), "add_watermarker": False}
        return assemble(StableDiffusionXLPipeline, self.folder, **given, image_encoder=None, feature_extractor=None)

    def sample(self, prompts: Sequence[str], generators: Sequence[torch.Generator], how: Drawing) -> list[Image.Image]:
        """Returns one image per prompt, drawn by StableDiffusionXLPipeline with the scheduler of the checkpoint."""
        pipeline = placed(self._pipeline, how.device, how.precision, offload=how.offload)
        latents = pipeline(
            prompt=list(prompts),
            negative_prompt=[how.negative_prompt] * len(prompts) if how.negative_prompt else None,
            generator=list(generators),
            num_inference_steps=how.num_inference_steps,
            guidance_scale=how.guidance_scale,
            height=how.size_px[0],
            width=how.size_px[1],
            output_type="latent",
        ).images
        return [to_image(self.decode_latents(pipeline.vae, one[None])[0]) for one in latents]

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
        """Returns scaled latents, sampled by StableDiffusionXLPipeline without a VAE or a text encoder."""
        unused = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        hidden, pooled = conditioning["encoder_hidden_states"], conditioning["text_embeds"]
        height, width = noise.shape[2:]
        size_px = (height * self.vae_factor, width * self.vae_factor)
        sampled: Tensor = self._assembled(unet=unet, **unused)(
            prompt_embeds=hidden,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=unconditional["encoder_hidden_states"].expand_as(hidden),
            negative_pooled_prompt_embeds=unconditional["text_embeds"].expand_as(pooled),
            latents=noise,
            generator=list(generators),
            height=8 * height,  # without a VAE, the pipeline assumes a factor of 8
            width=8 * width,
            original_size=size_px,
            target_size=size_px,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            output_type="latent",
        ).images
        return sampled
