"""Precision of the computations of networks, whose weights stay in fp32, and of weights on disk."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def computing_in(precision: Precision, device: str | torch.device) -> torch.autocast:
    """Returns a context that computes matrix products and convolutions on a device in a precision."""
    reduced: torch.dtype = DTYPES["bf16" if precision == "fp32" else precision]
    return torch.autocast(torch.device(device).type, reduced, enabled=precision != "fp32")
