"""Merging: what LoRA's factors make of the weights of a UNet."""

import re
from collections.abc import Mapping, Sequence

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
        ValueError: if a tensor is not a factor of LoRA; names it.
    """
    factors: Factors = {}
    for name, tensor in weights.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"{name} is not a factor of LoRA")
        factors.setdefault(found["module"], {})[found["factor"]] = tensor
    return factors


def merging(factors: Factors, scale: float) -> Change:
    """Returns the change that merges factors into the weights of a UNet, in fp32; `scale` multiplies the product B A."""

    def merge(name: str, weight: Tensor) -> Tensor:
        found = factors.get(name.removesuffix(".weight"))
        if found is None or not name.endswith(".weight"):
            return weight
        parts = {factor: tensor.to(weight.device, torch.float32) for factor, tensor in found.items()}
        return merged(weight.float(), parts["lora_A"], parts["lora_B"], scale, parts.get("lora_magnitude_vector"))

    return merge


def check_fit(factors: Factors, shapes: Mapping[str, Sequence[int]]) -> None:
    """Checks that factors belong to a UNet, from the shapes of its weights.

    Raises:
        ValueError: if the UNet lacks a layer, or has another shape there; names the layer.
    """
    for module, parts in factors.items():
        shape = list(shapes.get(f"{module}.weight", ()))
        a, b = (list(parts[factor].shape) if factor in parts else [] for factor in ("lora_A", "lora_B"))
        if not shape or a[1:] != shape[1:] or b[:1] != shape[:1] or a[:1] != b[1:2]:
            raise ValueError(
                f"the adapter does not fit the base: {module} has {f'weights {shape}' if shape else 'no weights'} there, "
                f"and factors {a} and {b} here; use the base that it was trained on"
            )


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
