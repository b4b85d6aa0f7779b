"""Exports a model for other programs: as a single file for ComfyUI and A1111, or as a folder in diffusers' layout."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from t2i.core.files import fresh
from t2i.model.adapter import ADAPTER_FILE
from t2i.model.export import export
from t2i.model.layout import parts, read_object
from t2i.model.precision import Precision
from t2i.model.pretrained import Change
from t2i.model.schedule import load_scheduler
from t2i.model.tuned import open_adapter
from t2i.tools.single_file import Written, stored_tensors, write_single_file


@dataclass(frozen=True)
class Exported:
    """What is exported."""

    pipeline: Path
    """The folder that all but the weights of the UNet come from: the model, or the base of an adapter."""
    pipeline_class: str
    """The class of diffusers that draws from text."""
    unet: Mapping[str, Tensor]
    scheduler_changes: Mapping[str, Any]
    """Changes to its scheduler configuration, with the names of diffusers."""
    sources: tuple[Path, ...]
    """The folders that are read, which no output may be in."""


class Changed(Mapping[str, Tensor]):
    """The weights of a UNet as an adapter changes them; each is computed when it is asked for."""

    def __init__(self, weights: Mapping[str, Tensor], change: Change) -> None:
        self._weights, self._change = weights, change

    def __getitem__(self, name: str) -> Tensor:
        return self._change(name, self._weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def exported(model: Path, base: Path, scale: float | None) -> Exported:
    """Returns a model for export.

    Args:
        model: a pipeline, or an adapter.
        base: the base of an adapter, which it is merged into.
        scale: strength of the adapter; None: 1.

    Raises:
        ValueError: if a folder is missing, or a scale is given for a pipeline.
    """
    if not model.is_dir():
        raise ValueError(f"{model}: no such folder; run `t2i train`, or name a model with --model")
    if not (model / ADAPTER_FILE).is_file():
        parts(model)
        if scale is not None:
            raise ValueError(f"{model}: got a scale of {scale:g}, but this is a whole model, not an adapter: leave it out")
        kind = str(read_object(model / "model_index.json").get("_class_name"))
        return Exported(model, kind, stored_tensors(model / "unet"), {}, (model,))
    adapter = open_adapter(base, model, 1.0 if scale is None else scale)
    unet = Changed(stored_tensors(base / "unet"), adapter.change)
    return Exported(base, adapter.pipeline, unet, adapter.scheduler_changes, (model, base))


def export_single_file(what: Exported, file: Path, precision: Precision, *, force: bool) -> Written:
    """Writes a pipeline as one safetensors file.

    Args:
        what: the pipeline.
        file: the output.
        precision: that of its weights.
        force: whether to replace a file that exists.

    Raises:
        ValueError: if the file exists, the pipeline is not one of Stable Diffusion, or a weight is too large for fp16.
    """
    if file.suffix != ".safetensors":
        raise ValueError(f"{file}: wanted a name that ends with .safetensors")
    if file.is_dir() or (file.exists() and not force):
        raise ValueError(f"{file}: exists already: give another name{'' if file.is_dir() else ', or --force to replace it'}")
    for source in what.sources:
        if file.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"{file}: inside the model {source}, which would change: give a path elsewhere")
    return write_single_file(what.pipeline, what.unet, file, precision, what.scheduler_changes)


def export_folder(what: Exported, out: Path, precision: Precision, *, force: bool) -> None:
    """Writes a pipeline as a folder in diffusers' layout, with the same arguments.

    Raises:
        ValueError: if the folder exists, or a weight is too large for fp16.
    """
    for inner, outer in ((one, other) for source in what.sources for one, other in ((out, source), (source, out))):
        if inner.resolve().is_relative_to(outer.resolve()):
            raise ValueError(f"{out}: is, holds or is inside the model {what.sources[0]}: give a path elsewhere")
    if out.exists() and not (force and (out / "model_index.json").is_file()):
        remedy = ", or --force to replace this pipeline" if (out / "model_index.json").is_file() else ""
        raise ValueError(f"{out}: exists already: give another name{remedy}")
    scheduler = load_scheduler(what.pipeline, what.scheduler_changes) if what.scheduler_changes else None
    with fresh(out) as folder:
        export(what.pipeline, what.pipeline_class, what.unet, scheduler, folder, precision, "use --dtype bf16 or fp32")
