"""Models as they lie in a folder: in fp32, from safetensors, every tensor where config.json wants it."""

from pathlib import Path
from typing import Any

import torch

_REMEDY = "weights and config.json do not belong together: take another base, or run `fetch base` again"


def load_pretrained(kind: Any, folder: Path) -> Any:
    """Returns a model of diffusers or transformers in fp32, all of whose weights come from the folder.

    Raises:
        ValueError: naming the folder and a tensor that is missing, unexpected or of another shape than config.json says.
    """
    from safetensors import SafetensorError

    reporting = {"output_loading_info": True, "use_safetensors": True, "dtype": torch.float32}
    if kind.__module__.startswith("transformers."):
        reporting["ignore_mismatched_sizes"] = True  # it then names the tensors, as diffusers does in any case
    try:
        model, said = kind.from_pretrained(folder, **reporting)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: {' '.join(str(error).split()).split('. If you')[0]}; {_REMEDY}") from None
    for problem in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(_described, said[f"{problem}_keys"])):
            raise ValueError(f"{folder}: {len(names)} {problem} tensors, such as {names[0]}; {_REMEDY}")
    return model


def _described(key: Any) -> str:
    """A tensor's name, with both shapes where they differ."""
    return key if isinstance(key, str) else f"{key[0]} (got {list(key[1])}, wanted {list(key[2])})"
