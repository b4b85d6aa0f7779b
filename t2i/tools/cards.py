"""Cards: what the UNets of published bases need on GPUs of each size, before anything is downloaded.

Everything is computed from the sizes of tensors. The activations are counted in a forward pass without memory (FakeTensorMode),
in fp32: an upper bound for bf16 and fp16, where autocast keeps some of them in 2 bytes.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from t2i.model.adapter import adapter_named
from t2i.tools.memory import FP32_BYTES, OPTIMIZER_BYTES
from t2i.tools.published import SIZES, BaseSize, unet_inputs, unet_of

CARDS_GB = (8, 12, 16, 24, 40, 48, 80)
_LORA = adapter_named("lora").Adapter(name="lora", rank=16, alpha=16.0, dropout=0.0, targets="attention_mlp", dora=False)
_USABLE = 0.9
"""Fraction of a card that training can use: the rest is for CUDA itself, and gaps between tensors."""
_STATES = {
    (optimizer, ema): FP32_BYTES + moments + (FP32_BYTES if ema == "GPU" else 0)
    for optimizer, moments in OPTIMIZER_BYTES.items()
    for ema in ("GPU", "CPU")
}
"""Bytes per trained parameter of gradients and optimizer, and of the EMA if it is on the GPU."""


class Activations(NamedTuple):
    """Bytes that a forward pass keeps for the backward pass, per image."""

    whole: int
    checkpointed: int
    """With gradient checkpointing: what is kept, and the largest block, which the backward pass computes again."""


class Trained(NamedTuple):
    """What is trained, and what the rest takes."""

    name: str
    parameters: int
    """Number of trained parameters."""
    base_bytes: int
    """Bytes of the weights that are not an adapter's."""
    casts: int
    """Bytes of the copies that autocast keeps of weights for the backward pass."""
    casts_checkpointed: int
    """The same with gradient checkpointing: frozen layers give theirs back."""


def table(name: BaseSize) -> Iterator[str]:
    """Yields the lines of the table of a base: the state of training, the activations, and what fits each card."""
    choices = _choices(name)
    yield f"{name}: {choices[0].parameters / 1e6:.0f} M parameters of the UNet, trained in bf16; computed, not measured"
    yield ""
    yield "trained          optimizer   EMA on  weights, gradients, optimizer, EMA"
    for trained in choices:
        for (optimizer, ema), per_trained in _STATES.items():
            state = trained.base_bytes + per_trained * trained.parameters
            yield f"{trained.name:16} {optimizer:11} {ema:7} {state / 1e9:.1f} GB"
        yield f"{trained.name:16} autocast keeps the trained weights in 2 bytes too: {2 * trained.parameters / 1e9:.1f} GB more"
    yield ""
    yield "image     activations per image of a micro-batch, at most   with gradient checkpointing"
    for size_px in SIZES[name].sizes_px:
        kept = activations(name, size_px)
        yield f"{size_px:4} px   {kept.whole / 1e9:.1f} GB {'':43} {kept.checkpointed / 1e9:.1f} GB"
    yield ""
    yield "largest `runtime.micro_batch_size` by card" + " " * 20 + "".join(f"{card:>6} GB" for card in CARDS_GB)
    for size_px in SIZES[name].sizes_px:
        for trained in choices:
            for (optimizer, ema), per_trained in _STATES.items():
                for checkpointing in (False, True):
                    casts = trained.casts_checkpointed if checkpointing else trained.casts
                    state = trained.base_bytes + per_trained * trained.parameters + casts
                    per_image = activations(name, size_px)[checkpointing]
                    fits = [max(0, int((_USABLE * card * 1e9 - state) / per_image)) for card in CARDS_GB]
                    how = f"{trained.name}, {optimizer}, EMA on {ema}{', checkpointing' if checkpointing else ''}"
                    yield f"{f'{size_px} px, {how}':62}" + "".join(f"{min(most, 128) or '-':>9}" for most in fits)


def _choices(name: BaseSize) -> list[Trained]:
    """Returns what the table shows: values of `train.trainable`, then a LoRA, whose base is kept in 2 bytes per parameter."""
    with torch.device("meta"):
        shapes = {key: weight.shape for key, weight in unet_of(name).named_parameters()}
    whole, none = sum(shape.numel() for shape in shapes.values()), adapter_named("none").Adapter(name="none")
    choices = []
    for pattern in SIZES[name].trainable:
        count = none.count(shapes, pattern)
        choices.append(Trained(pattern or "all", count, FP32_BYTES * whole, 2 * whole, 2 * count))
    count = _LORA.count(shapes, "")
    return [*choices, Trained(f"LoRA, rank {_LORA.rank}", count, 2 * whole + FP32_BYTES * count, 2 * count, 2 * count)]


@cache
def activations(name: BaseSize, size_px: int) -> Activations:
    """Returns the bytes that the UNet of a base keeps for the backward pass, per image."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        unet, blocks = unet_of(name), [0]
        kept = _Kept(unet)
        for module in unet.modules():
            if type(module).__name__ in ("ResnetBlock2D", "BasicTransformerBlock"):  # what checkpointing computes again at once
                module.register_forward_pre_hook(lambda *_: blocks.append(-kept.total))
                module.register_forward_hook(lambda *_: blocks.append(blocks.pop() + kept.total))
        whole = _forward(unet, size_px, kept)
        unet = unet_of(name)
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
    inputs = unet_inputs(unet, size_px)
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        unet(**inputs)
    return kept.total
