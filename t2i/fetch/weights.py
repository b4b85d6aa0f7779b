"""Weights that came from elsewhere: whether a safetensors file is whole, and every number in it is one."""

from pathlib import Path

import torch
from torch import Tensor


def check_weights(file: Path) -> None:
    """Reads a safetensors file tensor by tensor, so that no more than one is in memory.

    Raises:
        ValueError: naming the file that is not whole, or the tensor with a NaN or an infinity.
    """
    from safetensors import SafetensorError, safe_open

    remedy = f"delete {file.resolve()}, and run it again" if file.is_symlink() else "put a whole one in its place"
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if not _finite(tensors.get_tensor(name)):
                    raise ValueError(f"{file}: tensor {name} has NaN or infinite numbers: take weights that are finite")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: no whole safetensors file ({' '.join(str(error).split())}): {remedy}") from None


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())
