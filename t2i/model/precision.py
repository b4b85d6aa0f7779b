"""Precision of the computations of networks, whose weights stay in fp32, and of weights on disk."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def computing_in(precision: Precision, device: str | torch.device) -> torch.autocast:
    """Returns a context that computes matrix products and convolutions on a device in a precision."""
    reduced: torch.dtype = DTYPES["bf16" if precision == "fp32" else precision]
    return torch.autocast(torch.device(device).type, reduced, enabled=precision != "fp32")


def without_overflows(computed: Mapping[str, Tensor], exactly: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns tensors [b, ...] in fp32, with the rows that are not finite in fp16, the type on disk, computed in fp32.

    Args:
        computed: the tensors, computed in a reduced precision.
        exactly: returns the same tensors, computed in fp32. Called only if it is needed.
    """
    finite = torch.stack([torch.isfinite(tensor.half()).flatten(1).all(1) for tensor in computed.values()]).all(0)
    if finite.all():
        return {name: tensor.float() for name, tensor in computed.items()}
    exact = exactly()
    rows = {name: finite.view(-1, *[1] * (tensor.ndim - 1)) for name, tensor in computed.items()}
    return {name: torch.where(rows[name], tensor.float(), exact[name].float()) for name, tensor in computed.items()}
