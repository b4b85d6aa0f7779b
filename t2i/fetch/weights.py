"""Weights: checks that a safetensors file from elsewhere is complete and has only finite numbers."""

from pathlib import Path

import torch
from torch import Tensor


def check_weights(file: Path) -> None:
    """Checks the tensors of a safetensors file one by one, with at most one in memory.

    Raises:
        ValueError: if the file is not complete, or a tensor has NaN or infinite values; names the file and the tensor.
    """
    from safetensors import SafetensorError, safe_open

    remedy = f"delete {file.resolve()}, then run the command again" if file.is_symlink() else "replace it with a complete file"
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if not _finite(tensors.get_tensor(name)):
                    raise ValueError(f"{file}: tensor {name} has NaN or infinite values: use weights with finite values only")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: not a complete safetensors file ({' '.join(str(error).split())}): {remedy}") from None


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())
