"""Dropout whose masks depend only on (seed, step, place in the batch, layer): not on the device, processes or micro-batches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2i.data.chance import derived_seed

_32_BITS = 0xFFFFFFFF


class Dropout(nn.Module):
    """Zeroes a fraction `p` of its inputs during training, and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float, layer: str) -> None:
        super().__init__()
        self.p, self.layer = p, layer
        self.seeds: list[int] = []
        """One seed for each image of the next inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns inputs [b, ...] with some of them zeroed; called again, it zeroes the same (gradient checkpointing)."""
        if not self.training:
            return inputs
        assert len(self.seeds) == len(inputs)
        kept = torch.stack([_hashes(seed, inputs[0].numel(), inputs.device) >= int(self.p * 2**32) for seed in self.seeds])
        return inputs * kept.view_as(inputs) / (1 - self.p)


def _hashes(seed: int, count: int, device: torch.device) -> Tensor:
    """Returns `count` integers below 2^32, a function of the seed and of their index; equal on every device."""
    hashed = _mixed(torch.arange(count, device=device) ^ (seed & _32_BITS))
    return _mixed((hashed + (seed >> 32)) & _32_BITS)


def _mixed(x: Tensor) -> Tensor:
    """Returns hashes of integers below 2^32, with the constants of lowbias32 (Wellons 2018)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _32_BITS
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _32_BITS
    return x ^ (x >> 16)


def replace_dropouts(unet: nn.Module) -> None:
    """Replaces PEFT's dropout layers, which draw from a global generator."""
    for name, module in unet.named_modules():
        dropouts = getattr(module, "lora_dropout", {})
        for adapter, dropout in dropouts.items():
            dropouts[adapter] = Dropout(dropout.p, name)


def place_dropouts(unet: nn.Module, seed: int, step: int, places: Sequence[int]) -> None:
    """Says which places in the batch of a step the next inputs are for."""
    for module in unet.modules():
        if isinstance(module, Dropout):
            module.seeds = [derived_seed(seed, "dropout", step, place, module.layer) for place in places]
