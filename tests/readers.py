"""How ComfyUI and A1111 read checkpoints and LoRA files, by their rules and without their code or ours.

Both take the UNet from a single file (`model.diffusion_model.`), and add to each of its weights the product of the factors that
they find by name. They read no folders.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

PREFIX = "model.diffusion_model."
RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
"""The layers of a resnet in diffusers, and in the original layout."""


class CannotReadError(Exception):
    """The program finds nothing that it can use."""


def unet_of(checkpoint: Path) -> dict[str, Tensor]:
    """Returns the weights of the UNet in a single file, without its prefix."""
    if not checkpoint.is_file():
        raise CannotReadError(f"{checkpoint.name} is a folder")
    unet = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(checkpoint).items() if name.startswith(PREFIX)}
    if not unet:
        raise CannotReadError(f"{checkpoint.name} has no {PREFIX}")
    return unet


def comfyui(checkpoint: Path, lora: Path | None = None, strength: float = 1.0) -> dict[str, Tensor]:
    """Returns the weights of the UNet as ComfyUI patches them."""
    unet = unet_of(checkpoint)
    if lora is None:
        return unet
    factors, used = load_file(lora), set()
    names = {f"lora_unet_{name.replace('.', '_')}": name for name in modules(unet)}
    for theirs, original in by_diffusers_name(unet):
        names[f"lora_unet_{theirs.replace('.', '_')}"] = original
        names[f"unet.{theirs.replace('.to_', '.processor.to_').removesuffix('.0')}"] = original
    for key, original in names.items():
        for up, down in (("lora_up", "lora_down"), ("lora_B", "lora_A")):
            if f"{key}.{up}.weight" in factors:
                b, a = factors[f"{key}.{up}.weight"], factors[f"{key}.{down}.weight"]
                alpha = factors.get(f"{key}.alpha")
                scale = 1.0 if alpha is None else alpha.item() / a.shape[0]
                weight = unet[f"{original}.weight"]
                unet[f"{original}.weight"] = weight + strength * scale * (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
                used |= {f"{key}.{up}.weight", f"{key}.{down}.weight", f"{key}.alpha"}
    if left := factors.keys() - used:
        raise CannotReadError(f"{len(left)} keys not loaded, such as {min(left)}")
    return unet


def a1111(checkpoint: Path, lora: Path | None = None, strength: float = 1.0) -> dict[str, Tensor]:
    """Returns the weights of the UNet as A1111's extension for LoRA patches them."""
    unet = unet_of(checkpoint)
    if lora is None:
        return unet
    mapping = {f"diffusion_model_{name.replace('.', '_')}": name for name in modules(unet)}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(lora).items():
        key, _, part = name.partition(".")
        original = mapping.get(compvis(key)) or mapping.get(key.replace("lora_unet", "diffusion_model"))
        if original is None:
            raise CannotReadError(f"no layer for {name}")
        found.setdefault(original, {})[part] = tensor
    for original, parts in found.items():
        down = parts["lora_down.weight"]
        scale = parts["alpha"].item() / down.shape[0] if "alpha" in parts else 1.0
        weight = unet[f"{original}.weight"]
        product = (parts["lora_up.weight"].flatten(1) @ down.flatten(1)).reshape(weight.shape)
        unet[f"{original}.weight"] = weight + strength * scale * product
    return unet


def compvis(key: str) -> str:
    """Returns the name of a layer of Stable Diffusion 1.x and 2.x, from its name in diffusers; each block has three steps."""
    numbers = r"(attentions|resnets)_(\d+)_(.+)"
    if found := re.fullmatch(rf"lora_unet_(down|up)_blocks_(\d+)_{numbers}", key):
        side, block, kind, layer, rest = found.groups()
        step = int(block) * 3 + int(layer) + (1 if side == "down" else 0)
        return f"diffusion_model_{'input' if side == 'down' else 'output'}_blocks_{step}_{kind_at(kind)}_{inside(kind, rest)}"
    if found := re.fullmatch(rf"lora_unet_mid_block_{numbers}", key):
        kind, layer, rest = found.groups()
        return f"diffusion_model_middle_block_{1 if kind == 'attentions' else int(layer) * 2}_{inside(kind, rest)}"
    if found := re.fullmatch(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", key):
        return f"diffusion_model_input_blocks_{3 + int(found[1]) * 3}_0_op"
    if found := re.fullmatch(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", key):
        return f"diffusion_model_output_blocks_{2 + int(found[1]) * 3}_{2 if int(found[1]) > 0 else 1}_conv"
    return key


def kind_at(kind: str) -> int:
    return 1 if kind == "attentions" else 0


def inside(kind: str, name: str) -> str:
    return RESNET[name].replace(".", "_") if kind == "resnets" else name


def modules(unet: dict[str, Tensor]) -> list[str]:
    return [name.removesuffix(".weight") for name in unet if name.endswith(".weight")]


def by_diffusers_name(unet: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yields the layers of a UNet by their names in diffusers and in the original layout; each block has two resnets."""
    blocks = (max(int(name.split(".")[1]) for name in unet if name.startswith("input_blocks.")) + 1) // 3
    names = modules(unet)
    for block in range(blocks):
        for layer in range(2):
            step = f"input_blocks.{1 + 3 * block + layer}"
            yield from resnet(f"down_blocks.{block}.resnets.{layer}", f"{step}.0", names)
            yield from attention(f"down_blocks.{block}.attentions.{layer}", f"{step}.1", names)
        yield f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{3 + 3 * block}.0.op"
        for layer in range(3):
            step = f"output_blocks.{3 * block + layer}"
            yield from resnet(f"up_blocks.{block}.resnets.{layer}", f"{step}.0", names)
            yield from attention(f"up_blocks.{block}.attentions.{layer}", f"{step}.1", names)
        last = f"output_blocks.{3 * block + 2}"
        place = next((place for place in (1, 2) if f"{last}.{place}.conv" in names), None)
        yield f"up_blocks.{block}.upsamplers.0.conv", f"{last}.{place}.conv"
    yield from resnet("mid_block.resnets.0", "middle_block.0", names)
    yield from attention("mid_block.attentions.0", "middle_block.1", names)
    yield from resnet("mid_block.resnets.1", "middle_block.2", names)


def resnet(theirs: str, original: str, names: list[str]) -> Iterator[tuple[str, str]]:
    yield from ((f"{theirs}.{name}", f"{original}.{other}") for name, other in RESNET.items() if f"{original}.{other}" in names)


def attention(theirs: str, original: str, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if name.startswith(f"{original}.") and not name.endswith((".conv", ".op")):
            yield f"{theirs}{name.removeprefix(original)}", name


def change(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Returns the largest change of a weight."""
    assert before.keys() == after.keys()
    return max((after[name].float() - before[name].float()).abs().max().item() for name in before)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Returns whether all weights are equal to 1e-5 of the largest."""
    largest = max(tensor.abs().max().item() for tensor in one.values())
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].float(), other[name].float(), rtol=0, atol=1e-5 * largest) for name in one
    )
