"""Precision of the computations of networks; their weights stay in fp32."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]


def computing_in(precision: Precision, device: str | torch.device) -> torch.autocast:
    """Returns a context that computes matrix products and convolutions on a device in a precision."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(torch.device(device).type, dtype, enabled=precision != "fp32")
