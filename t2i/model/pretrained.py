"""Loads pretrained models from a folder: in fp32, from safetensors, with exactly the tensors that config.json expects."""

from pathlib import Path
from typing import Any

import torch

_REMEDY = "the weights do not match config.json: use another base, or run `fetch base` again"


def load_pretrained(kind: Any, folder: Path) -> Any:
    """Returns a model of diffusers or transformers in fp32, with all weights from the folder.

    Raises:
        ValueError: if a tensor is missing, unexpected or of the wrong shape; names the folder and the tensor.
    """
    from safetensors import SafetensorError

    reporting = {"output_loading_info": True, "use_safetensors": True, "dtype": torch.float32}
    if kind.__module__.startswith("transformers."):
        reporting["ignore_mismatched_sizes"] = True  # transformers then lists the tensors, as diffusers always does
    try:
        model, said = kind.from_pretrained(folder, **reporting)
    except (OSError, RuntimeError, LookupError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: {' '.join(str(error).split()).split('. If you')[0]}; {_REMEDY}") from None
    # Of sharded weights, diffusers does not report the missing tensors: it leaves them without values.
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    for problem in ("missing", "unexpected", "mismatched"):
        if names := sorted({_described(key) for key in [*said[f"{problem}_keys"], *(empty if problem == "missing" else [])]}):
            raise ValueError(f"{folder}: {len(names)} {problem} tensors, such as {names[0]}; {_REMEDY}")
    return model


def _described(key: Any) -> str:
    """Returns the name of a tensor, with both shapes if they differ."""
    return key if isinstance(key, str) else f"{key[0]} (got {list(key[1])}, wanted {list(key[2])})"
