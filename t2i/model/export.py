"""Export: writes a complete pipeline in diffusers' layout with new UNet weights."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.model.precision import DTYPES, Precision

_REMEDY = "set `train.export_dtype` to bf16 or fp32, and run again; training is not repeated"


def export(
    checkpoint: Path,
    pipeline: str,
    weights: Mapping[str, Tensor],
    scheduler: Any | None,
    out: Path,
    precision: Precision,
    remedy: str = _REMEDY,
) -> None:
    """Writes a pipeline with all weights in one precision; builds no VAE and no text encoder.

    A pipeline in fp32 samples when it is loaded without a dtype. One in fp16 or bf16 takes half the space.

    Args:
        checkpoint: folder of the pipeline that all other parts come from.
        pipeline: the class of diffusers that draws from text; the checkpoint may state a related one.
        weights: all weights of the UNet.
        scheduler: replaces the scheduler of the checkpoint; None keeps it.
        out: the output folder.
        precision: that of the weights on disk.
        remedy: what to do if a weight is too large, for the message.

    Raises:
        ValueError: if a weight is too large for fp16; names the file and the tensor.
    """
    # copyfile does not copy file modes: files that DVC has linked are read-only.
    shutil.copytree(checkpoint, out, copy_function=shutil.copyfile, dirs_exist_ok=True, ignore=_the_unet)
    (out / "unet").mkdir(exist_ok=True)
    shutil.copyfile(checkpoint / "unet" / "config.json", out / "unet" / "config.json")
    _cast_all(out, precision, remedy)
    _save(weights, out / "unet" / "diffusion_pytorch_model.safetensors", precision, remedy)
    _merge(out / "model_index.json", {"_class_name": pipeline})
    if scheduler is not None:
        scheduler.save_pretrained(out / "scheduler")
        _merge(out / "model_index.json", {"scheduler": ["diffusers", type(scheduler).__name__]})


def _the_unet(folder: str, names: list[str]) -> list[str]:
    return names if Path(folder).name == "unet" else []


def _cast_all(pipeline: Path, precision: Precision, remedy: str) -> None:
    from safetensors.torch import load_file

    for file in pipeline.rglob("*.safetensors"):
        _save(load_file(file), file, precision, remedy)
    for file in pipeline.rglob("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if stated := {"dtype", "torch_dtype"} & config.keys():
            _merge(file, dict.fromkeys(stated, str(DTYPES[precision]).removeprefix("torch.")))


def _save(tensors: Mapping[str, Tensor], file: Path, precision: Precision, remedy: str) -> None:
    from safetensors.torch import save_file

    cast = in_precision(tensors, f"{file.parent.name}/{file.name}", precision, remedy)
    save_file(cast, file, metadata={"format": "pt"})


def in_precision(tensors: Mapping[str, Tensor], file: str, precision: Precision, remedy: str = _REMEDY) -> dict[str, Tensor]:
    """Returns tensors on the CPU, contiguous and in a precision; integers stay as they are.

    Raises:
        ValueError: if a value is too large for fp16; names the file and the tensor.
    """
    cast = {}
    for name, tensor in tensors.items():
        its = tensor.detach().to("cpu", DTYPES[precision] if tensor.is_floating_point() else None)
        if precision == "fp16" and its.is_floating_point() and not torch.isfinite(its).all():
            raise ValueError(f"{file}: {name} is not finite in fp16 (largest magnitude {tensor.abs().max():.3g}): {remedy}")
        cast[name] = its.contiguous()
    return cast


def _merge(file: Path, changes: Mapping[str, Any]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | changes, indent=2) + "\n", encoding="utf-8")
