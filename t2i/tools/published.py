"""Published: the sizes of the networks of published bases, without their weights."""

from typing import Any, Literal, NamedTuple

import torch

BaseSize = Literal["sd15", "sd21", "sdxl"]


class Published(NamedTuple):
    """The sizes of a base."""

    unet: dict[str, Any]
    """What its published configuration changes in diffusers' UNet2DConditionModel."""
    text: tuple[dict[str, Any], ...]
    """What those of its text encoders change in transformers' CLIPTextConfig."""
    sizes_px: tuple[int, ...]
    """Sides of the images, squares."""
    trainable: tuple[str, ...] = ("",)
    """Values of `train.trainable` to show."""


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SIZES: dict[BaseSize, Published] = {
    "sd15": Published({"cross_attention_dim": 768, "attention_head_dim": 8}, (CLIP_L,), (512, 768)),
    "sd21": Published(
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        (CLIP_H,),
        (512, 768),
    ),
    "sdxl": Published(
        {
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        (CLIP_L, CLIP_BIG_G | {"projection_dim": 1280}),
        (1024,),
        ("", "attn"),
    ),
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
"""What the published configuration of all their VAEs changes in diffusers' AutoencoderKL."""
VAE_FACTOR, LATENT_CHANNELS = 8, 4
TOKENS = 77


def unet_of(name: BaseSize) -> Any:
    """Returns the UNet of a base, with random weights, for training."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**SIZES[name].unet).train()


def unet_inputs(unet: Any, size_px: int) -> dict[str, Any]:
    """Returns inputs of a UNet, for one image of `size_px` x `size_px` pixels."""
    side, config = size_px // VAE_FACTOR, unet.config
    inputs = {
        "sample": torch.empty(1, LATENT_CHANNELS, side, side),
        "timestep": torch.zeros(1, dtype=torch.long),
        "encoder_hidden_states": torch.empty(1, TOKENS, config["cross_attention_dim"]),
    }
    if pooled := (config.get("projection_class_embeddings_input_dim") or 0) - 6 * (config.get("addition_time_embed_dim") or 0):
        return inputs | {"added_cond_kwargs": {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}}
    return inputs
