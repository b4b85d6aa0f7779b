"""Change: how far training moved the weights of the UNet."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


def relative_change(unet: Path, weights: Mapping[str, Tensor]) -> float:
    """Returns the norm of the difference between weights and those of the base, divided by the norm of those of the base.

    Args:
        unet: folder of the base's UNet; its tensors are read one by one.
        weights: trained weights, by name; names that the base does not have are not compared.
    """
    moved = whole = 0.0
    for file in sorted(unet.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys() & weights.keys():
                before, after = tensors.get_tensor(name).double(), weights[name].detach().cpu().double()
                moved += (after - before).square().sum().item()
                whole += before.square().sum().item()
    return (moved / whole) ** 0.5 if whole else float("inf")
