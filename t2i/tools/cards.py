"""Cards: what the UNets of published bases need on GPUs of each size, before anything is downloaded.

Everything is computed from the sizes of tensors. The activations are counted in a forward pass without memory (FakeTensorMode),
in fp32: an upper bound for bf16 and fp16, where autocast keeps some of them in 2 bytes.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from t2i.tools.memory import FP32_BYTES, OPTIMIZER_BYTES

BaseSize = Literal["sd15", "sd21"]

CARDS_GB = (8, 12, 16, 24, 48, 80)
SIZES_PX = (512, 768)
_UNETS: dict[BaseSize, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
}
"""What their published configurations change in diffusers' UNet2DConditionModel."""
_TOKENS = 77
_USABLE = 0.9
"""Fraction of a card that training can use: the rest is for CUDA itself, and gaps between tensors."""
_STATES = {
    (optimizer, ema): 2 * FP32_BYTES + moments + (FP32_BYTES if ema == "GPU" else 0)
    for optimizer, moments in OPTIMIZER_BYTES.items()
    for ema in ("GPU", "CPU")
}
"""Bytes per parameter of weights, gradients and optimizer, and of the EMA if it is on the GPU."""


class Activations(NamedTuple):
    """Bytes that a forward pass keeps for the backward pass, per image."""

    whole: int
    checkpointed: int
    """With gradient checkpointing: what is kept, and the largest block, which the backward pass computes again."""


def table(name: BaseSize) -> Iterator[str]:
    """Yields the lines of the table of a base: the state of training, the activations, and what fits each card."""
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in _unet(name).parameters())
    yield f"{name}: all {parameters / 1e6:.0f} M parameters of the UNet trained in bf16; computed, not measured"
    yield ""
    yield "optimizer    EMA on   weights, gradients, optimizer, EMA"
    for (optimizer, ema), per_parameter in _STATES.items():
        yield f"{optimizer:12} {ema:8} {per_parameter * parameters / 1e9:.1f} GB"
    yield f"autocast keeps the weights in 2 bytes during a step: {2 * parameters / 1e9:.1f} GB more"
    yield ""
    yield "image    activations per image of a micro-batch, at most   with gradient checkpointing"
    for size_px in SIZES_PX:
        kept = activations(name, size_px)
        yield f"{size_px:4} px  {kept.whole / 1e9:.1f} GB {'':43} {kept.checkpointed / 1e9:.1f} GB"
    yield ""
    yield "largest `runtime.micro_batch_size` by card" + "".join(f"{card:>6} GB" for card in CARDS_GB)
    for size_px in SIZES_PX:
        for (optimizer, ema), per_parameter in _STATES.items():
            for checkpointing in (False, True):
                state = (per_parameter + 2) * parameters
                per_image = activations(name, size_px)[checkpointing]
                fits = [max(0, int((_USABLE * card * 1e9 - state) / per_image)) for card in CARDS_GB]
                what = f"{size_px} px, {optimizer}, EMA on {ema}{', checkpointing' if checkpointing else ''}"
                yield f"{what:42}" + "".join(f"{min(most, 128) or '-':>9}" for most in fits)


@cache
def activations(name: BaseSize, size_px: int) -> Activations:
    """Returns the bytes that the UNet of a base keeps for the backward pass, per image."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        unet, blocks = _unet(name), [0]
        kept = _Kept(unet)
        for module in unet.modules():
            if type(module).__name__ in ("ResnetBlock2D", "Transformer2DModel"):
                module.register_forward_pre_hook(lambda *_: blocks.append(-kept.total))
                module.register_forward_hook(lambda *_: blocks.append(blocks.pop() + kept.total))
        whole = _forward(unet, size_px, kept)
        unet = _unet(name)
        unet.enable_gradient_checkpointing()
        return Activations(whole, _forward(unet, size_px, _Kept(unet)) + max(blocks))


class _Kept:
    """Counts the bytes of the tensors that autograd saves, each once, without the weights."""

    def __init__(self, unet: nn.Module) -> None:
        self.total = 0
        weights = (weight.untyped_storage() for weight in unet.parameters())
        self._seen = {storage._cdata: storage for storage in weights}  # holds the storages: no address is used twice

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.total += storage.nbytes()
        return tensor


def _forward(unet: Any, size_px: int, kept: _Kept) -> int:
    latents = torch.empty(1, 4, size_px // 8, size_px // 8)
    captions = torch.empty(1, _TOKENS, unet.config["cross_attention_dim"])
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        unet(latents, torch.zeros(1, dtype=torch.long), encoder_hidden_states=captions)
    return kept.total


def _unet(name: BaseSize) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**_UNETS[name]).train()
