"""Opens what training exported: a whole pipeline, or an adapter on its base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t2i.core.params import ParamsError, load_section
from t2i.data.digests import digest_of, sha256_of
from t2i.model.adapter import ADAPTER_FILE, adapter_named
from t2i.model.base import Base
from t2i.model.family import Family, load_family, open_family
from t2i.model.layout import read_object
from t2i.model.pretrained import Change


def open_tuned(params_file: Path, base: Path, model: Path, written_by: str, scale: float = 1.0) -> Family:
    """Opens a fine-tuned model: a pipeline, or the base with an adapter.

    Args:
        params_file: path of params.yaml.
        base: folder of the base, in diffusers layout; read only for an adapter.
        model: folder of the model.
        written_by: the command that writes the folder, for the message if it is missing.
        scale: strength of an adapter; 1: as trained. It has no effect on a pipeline.

    Raises:
        ValueError: if the folder has neither, or the adapter does not fit the base.
    """
    if not (model / ADAPTER_FILE).is_file():
        return open_family(params_file, model, written_by)
    adapter = open_adapter(base, model, scale)
    return load_family(load_section(params_file, "base", Base).family, base, adapter.scheduler_changes, adapter.change)


class Opened(NamedTuple):
    """An adapter that was exported."""

    change: Change
    """What it makes of the weights of the base's UNet."""
    scheduler_changes: Mapping[str, Any]
    """Changes to the scheduler configuration of the base, with the names of diffusers."""
    pipeline: str
    """The class of diffusers that draws from text."""


def open_adapter(base: Path, model: Path, scale: float) -> Opened:
    """Opens the adapter in a folder.

    Args:
        base: folder of its base.
        model: folder of the adapter.
        scale: its strength; 1: as trained.

    Raises:
        ValueError: if there is no base, the adapter lacks a file or has a damaged one, or it does not fit the base.
    """
    if not (base / "model_index.json").is_file():
        raise ValueError(f"{base}: no pipeline here, and {model} is an adapter, which needs its base; run `t2i fetch base`")
    stated = read_object(model / ADAPTER_FILE)
    try:
        change = adapter_named(stated.get("name")).open_adapter(model, base / "unet", scale)
    except ParamsError as error:
        raise ValueError(f"{model / ADAPTER_FILE}: {error}") from None
    return Opened(change, stated.get("scheduler_changes") or {}, str(stated.get("pipeline")))


def weights_digest(model: Path) -> str:
    """Returns the sha256 of an adapter's weights or of a pipeline's UNet; of its folder if they are in several files."""
    if (model / ADAPTER_FILE).is_file():
        return sha256_of(model / str(read_object(model / ADAPTER_FILE).get("weights")))
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    return sha256_of(weights) if weights.is_file() else digest_of(model / "unet")
