"""Exports a pipeline for other programs: as a single file for ComfyUI and A1111, or as a folder in diffusers' layout."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from t2i.core.files import fresh
from t2i.model.export import export
from t2i.model.layout import parts, read_object
from t2i.model.precision import Precision
from t2i.tools.single_file import Written, stored_tensors, write_single_file


def export_single_file(
    model: Path, file: Path, precision: Precision, *, force: bool, unet: Mapping[str, Tensor] | None = None
) -> Written:
    """Writes a pipeline as one safetensors file.

    Args:
        model: folder of the pipeline.
        file: the output.
        precision: that of its weights.
        force: whether to replace a file that exists.
        unet: the weights of the UNet; None for those of the pipeline.

    Raises:
        ValueError: if the file exists, the pipeline is not one of Stable Diffusion, or a weight is too large for fp16.
    """
    _check_pipeline(model)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file}: wanted a name that ends with .safetensors")
    if file.is_dir() or (file.exists() and not force):
        raise ValueError(f"{file}: exists already: give another name{'' if file.is_dir() else ', or --force to replace it'}")
    if file.resolve().is_relative_to(model.resolve()):
        raise ValueError(f"{file}: inside the model {model}, which would change: give a path elsewhere")
    return write_single_file(model, stored_tensors(model / "unet") if unet is None else unet, file, precision)


def export_folder(
    model: Path, out: Path, precision: Precision, *, force: bool, unet: Mapping[str, Tensor] | None = None
) -> None:
    """Writes a pipeline as a folder in diffusers' layout, with the same arguments.

    Raises:
        ValueError: if the folder exists, or a weight is too large for fp16.
    """
    _check_pipeline(model)
    for inner, outer in ((out, model), (model, out)):
        if inner.resolve().is_relative_to(outer.resolve()):
            raise ValueError(f"{out}: is, holds or is inside the model {model}: give a path elsewhere")
    if out.exists() and not (force and (out / "model_index.json").is_file()):
        remedy = ", or --force to replace this pipeline" if (out / "model_index.json").is_file() else ""
        raise ValueError(f"{out}: exists already: give another name{remedy}")
    pipeline = str(read_object(model / "model_index.json").get("_class_name"))
    weights = stored_tensors(model / "unet") if unet is None else unet
    with fresh(out) as folder:
        export(model, pipeline, weights, None, folder, precision, "use --dtype bf16 or fp32")


def _check_pipeline(model: Path) -> None:
    if not model.is_dir():
        raise ValueError(f"{model}: no such folder; run `t2i train`, or name a pipeline with --model")
    parts(model)
