"""Merging: what LoRA's factors make of the weights of a UNet."""

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.model.pretrained import Change

Factors = dict[str, dict[str, Tensor]]
"""`lora_A`, `lora_B` and, with DoRA, `lora_magnitude_vector` of each module."""

_NAME = re.compile(r"(?:unet\.)?(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?")


def by_module(weights: Mapping[str, Tensor]) -> Factors:
    """Returns factors by module, from names in a UNet with an adapter, or in a file in PEFT's layout.

    Raises:
        ValueError: if a tensor is none of LoRA's; names it.
    """
    factors: Factors = {}
    for name, tensor in weights.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"{name} is not a factor of LoRA")
        factors.setdefault(found["module"], {})[found["factor"]] = tensor
    return factors


def merging(factors: Factors, scale: float) -> Change:
    """Returns the change that merges factors into the weights of a UNet; `scale` multiplies the product B A."""

    def merge(name: str, weight: Tensor) -> Tensor:
        found = factors.get(name.removesuffix(".weight"))
        if found is None or not name.endswith(".weight"):
            return weight
        parts = {factor: tensor.to(weight.device, torch.float32) for factor, tensor in found.items()}
        try:
            return merged(weight.float(), parts["lora_A"], parts["lora_B"], scale, parts.get("lora_magnitude_vector")).to(
                weight
            )
        except (KeyError, RuntimeError):
            raise ValueError(
                f"the adapter does not fit the base: {name} is {list(weight.shape)}, and its factors are "
                f"{ {factor: list(tensor.shape) for factor, tensor in found.items()} }: use the base that it was trained on"
            ) from None

    return merge


def merged(
    weight: Float[Tensor, "out ..."],
    lora_a: Float[Tensor, "rank ..."],
    lora_b: Float[Tensor, "out rank ..."],
    scale: float,
    magnitude: Tensor | None = None,
) -> Float[Tensor, "out ..."]:
    """Returns W + scale B A; with DoRA, the weights of each output are then scaled to the norm that `magnitude` gives."""
    changed = weight + scale * (lora_b.flatten(1) @ lora_a.flatten(1)).view_as(weight)
    if magnitude is None:
        return changed
    norm = torch.linalg.vector_norm(changed.flatten(1), dim=1)
    scaled: Tensor = changed * (magnitude.flatten() / norm).view(-1, *[1] * (weight.ndim - 1))
    return scaled
