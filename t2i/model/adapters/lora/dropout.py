"""Dropout whose masks depend only on (seed, step, place in the batch, layer): not on the device, processes or micro-batches."""

import torch
from torch import Tensor, nn

from t2i.data.counter import Places, Step, key_of, words_on


class Dropout(nn.Module):
    """Zeroes a fraction `p` of its inputs during training, and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float, layer: str) -> None:
        super().__init__()
        self.p, self.layer = p, layer
        self.drawn_for: tuple[int, Step, Places] = (0, 0, range(0))
        """Seed, step and places in the batch of the next inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns inputs [b, ...] with some of them zeroed; called again, it zeroes the same (gradient checkpointing)."""
        if not self.training:
            return inputs
        seed, step, places = self.drawn_for
        assert len(places) == len(inputs)
        count = inputs[0].numel()
        words = torch.cat(words_on(inputs.device, key_of(seed, "dropout", self.layer), step, places, -(-count // 4)), dim=1)
        kept = words[:, :count] >= int(self.p * 2**32) - 2**31
        return inputs * kept.reshape(inputs.shape) / (1 - self.p)


def replace_dropouts(unet: nn.Module) -> None:
    """Replaces PEFT's dropout layers, which draw from a global generator."""
    for name, module in unet.named_modules():
        dropouts = getattr(module, "lora_dropout", {})
        for adapter, dropout in dropouts.items():
            dropouts[adapter] = Dropout(dropout.p, name)


def place_dropouts(unet: nn.Module, seed: int, step: Step, places: Places) -> None:
    """Says which places in the batch of a step the next inputs are for."""
    for module in unet.modules():
        if isinstance(module, Dropout):
            module.drawn_for = (seed, step, places)
