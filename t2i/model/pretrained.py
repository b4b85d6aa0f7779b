"""Loads pretrained models from a folder: in fp32, from safetensors, with exactly the tensors that config.json expects."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.model.precision import DTYPES, Precision

Change = Callable[[str, Tensor], Tensor]
"""Returns what a fine-tuned UNet has instead of a weight of its base, from the name and the weight."""

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


def load_unet(unet: Path, change: Change | None = None, *, random: bool) -> nn.Module:
    """Returns a UNet2DConditionModel in fp32, with its weights, changed by `change`, or, if `random`, with random weights."""
    from diffusers import UNet2DConditionModel

    if random:
        made: nn.Module = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(unet))
        return made
    pretrained: nn.Module = load_pretrained(UNet2DConditionModel, unet)
    if change is not None:
        for name, weight in pretrained.named_parameters():
            weight.data = change(name, weight.data)
    return pretrained


def assemble(kind: Any, pipeline: Path, **given: Any) -> Any:
    """Returns a pipeline of diffusers, without progress bars.

    Args:
        kind: its class.
        pipeline: the folder.
        given: parts that replace those of the folder, None for parts that are not needed, and options of the class.
    """
    from diffusers.utils import logging

    logging.disable_progress_bar()
    assembled = kind.from_pretrained(pipeline, **given, use_safetensors=True)
    assembled.set_progress_bar_config(disable=True)
    return assembled


def placed(pipeline: Any, device: str, precision: Precision, *, offload: bool) -> Any:
    """Returns a pipeline of diffusers on a device, with the weights of its UNet in a precision.

    Args:
        pipeline: the pipeline.
        device: where it draws.
        precision: that of the UNet; all other networks stay as they are.
        offload: whether only the network in use is on the device; has no effect on the CPU.
    """
    pipeline.unet.to(DTYPES[precision])
    if offload and device != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def frozen(model: Any, device: str) -> nn.Module:
    """Returns a model on a device, without gradients and in evaluation mode."""
    its: nn.Module = model.requires_grad_(False).eval().to(device)
    return its


def _described(key: Any) -> str:
    """Returns the name of a tensor, with both shapes if they differ."""
    return key if isinstance(key, str) else f"{key[0]} (got {list(key[1])}, wanted {list(key[2])})"
