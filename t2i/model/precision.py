"""Precision: what networks compute in; their weights stay fp32."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]


def computing_in(precision: Precision, device: str | torch.device) -> torch.autocast:
    """Returns the context in which matrix products and convolutions on a device are computed in a precision."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(torch.device(device).type, dtype, enabled=precision != "fp32")
