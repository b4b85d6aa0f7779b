"""Export: writes a complete pipeline in diffusers' layout with new UNet weights."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def export(checkpoint: Path, weights: Mapping[str, Tensor], scheduler: Any | None, out: Path) -> None:
    """Writes a pipeline in fp32; builds no VAE and no text encoder.

    All parts are fp32, so that the pipeline samples when it is loaded without a dtype.

    Args:
        checkpoint: folder of the pipeline that all other parts come from.
        weights: all weights of the UNet.
        scheduler: replaces the scheduler of the checkpoint; None keeps it.
        out: the output folder.
    """
    # copyfile does not copy file modes: files that DVC has linked are read-only.
    shutil.copytree(
        checkpoint,
        out,
        copy_function=shutil.copyfile,
        dirs_exist_ok=True,
        ignore=lambda at, names: names if Path(at).name == "unet" else [],
    )
    (out / "unet").mkdir(exist_ok=True)
    shutil.copyfile(checkpoint / "unet" / "config.json", out / "unet" / "config.json")
    _to_fp32(out)
    _save(weights, out / "unet" / "diffusion_pytorch_model.safetensors")
    if scheduler is not None:
        scheduler.save_pretrained(out / "scheduler")
        _merge(out / "model_index.json", {"scheduler": ["diffusers", type(scheduler).__name__]})


def _to_fp32(pipeline: Path) -> None:
    from safetensors.torch import load_file

    for file in pipeline.rglob("*.safetensors"):
        _save({name: t.float() if t.is_floating_point() else t for name, t in load_file(file).items()}, file)
    for file in pipeline.rglob("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if stated := {"dtype", "torch_dtype"} & config.keys():
            _merge(file, dict.fromkeys(stated, "float32"))


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, file, metadata={"format": "pt"})


def _merge(file: Path, changes: Mapping[str, Any]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | changes, indent=2) + "\n", encoding="utf-8")
