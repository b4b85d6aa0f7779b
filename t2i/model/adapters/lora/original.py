"""The names of a UNet's modules in the original layout, which single files and ComfyUI use.

diffusers groups the layers into blocks, each with lists of resnets and attentions. The original layout numbers the steps from
the input to the output: `input_blocks.N`, `middle_block.N`, `output_blocks.N`. The entries of a step are its layers. Inside an
attention, both layouts have the same names.
"""

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}

_INSIDE_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

_BLOCKS = {"down": ("DownBlock2D", "CrossAttnDownBlock2D"), "up": ("UpBlock2D", "CrossAttnUpBlock2D")}
"""The block types that the original layout has."""

_LAYER = re.compile(
    r"(?:(?P<side>down|up)_blocks\.(?P<block>\d+)|mid_block)"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)(?:\.(?P<inside>.+))?"
)


def has_original_layout(config: Mapping[str, Any]) -> bool:
    """Returns whether a UNet has the layers of Stable Diffusion 1.x, 2.x or XL, so that each has a name in the original layout.

    Args:
        config: the configuration of the UNet2DConditionModel.
    """
    known = all(set(config[f"{side}_block_types"]) <= set(_BLOCKS[side]) for side in _BLOCKS)
    return known and config.get("resnet_time_scale_shift", "default") == "default"


def original_name(name: str, config: Mapping[str, Any]) -> str:
    """Returns the name in the original layout of a module or tensor of a UNet.

    Args:
        name: its name in diffusers, such as `up_blocks.1.attentions.0.proj_in` or `conv_in.weight`.
        config: the configuration of the UNet2DConditionModel.

    Raises:
        ValueError: if the original layout has no such module; names it.
    """
    for module, original in _OUTSIDE_BLOCKS.items():
        if name == module or name.startswith(f"{module}."):
            return f"{original}{name.removeprefix(module)}"
    layer = _LAYER.fullmatch(name)
    place, inside = (_place(layer, config), _inside(layer["kind"], layer["inside"])) if layer else (None, None)
    if place is None or inside is None:
        raise ValueError(
            f"UNet: {name} has no name in the original layout, which only the UNets of Stable Diffusion 1.x, 2.x and XL have"
        )
    return f"{place}{inside}"


def _place(layer: re.Match[str], config: Mapping[str, Any]) -> str | None:
    """Returns the step of a layer and its place in the step; None if the original layout has no such layer."""
    kind, number, side = layer["kind"], int(layer["layer"]), layer["side"]
    if side is None:
        return {"resnets": f"middle_block.{2 * number}", "attentions": f"middle_block.{2 * number + 1}"}.get(kind)
    blocks, block = config[f"{side}_block_types"], int(layer["block"])
    if block >= len(blocks) or blocks[block] not in _BLOCKS[side]:
        return None
    first, resnets = _steps(config, side)[block]
    if side == "down":  # a downsampler is a step of its own
        steps = {"resnets": f"{first + number}.0", "attentions": f"{first + number}.1", "downsamplers": f"{first + resnets}.0"}
        return f"input_blocks.{steps[kind]}" if kind in steps else None
    last = f"{first + resnets - 1}.{2 if blocks[block].startswith('CrossAttn') else 1}"  # an upsampler ends the last step
    steps = {"resnets": f"{first + number}.0", "attentions": f"{first + number}.1", "upsamplers": last}
    return f"output_blocks.{steps[kind]}" if kind in steps else None


def _steps(config: Mapping[str, Any], side: str) -> list[tuple[int, int]]:
    """Returns the first step of each block, and its number of resnets."""
    blocks, stated = len(config[f"{side}_block_types"]), config["layers_per_block"]
    layers = [stated] * blocks if isinstance(stated, int) else list(stated)
    if side == "down":
        return list(zip(accumulate((count + 1 for count in layers), initial=1), layers, strict=False))
    resnets = [count + 1 for count in reversed(layers)]
    return list(zip(accumulate(resnets, initial=0), resnets, strict=False))


def _inside(kind: str, name: str | None) -> str | None:
    """Returns the name below a layer, after a dot; None if the original layout has no such module."""
    if name is None or kind == "attentions":
        return f".{name}" if name else ""
    renamed = {"resnets": _INSIDE_RESNET, "downsamplers": {"conv": "op"}, "upsamplers": {"conv": "conv"}}[kind]
    module, dot, tensor = name.partition(".")
    return f".{renamed[module]}{dot}{tensor}" if module in renamed else None
