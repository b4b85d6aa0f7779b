"""Single files: a base in one safetensors file, as ComfyUI and A1111 use it, is converted to a folder in diffusers' layout.

Everything is checked from the header of the file, before a weight is read.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from t2i.core.files import write_json
from t2i.fetch.weights import PICKLES, check_finite
from t2i.model.base import Base
from t2i.model.checks import SPECIAL_UNETS
from t2i.model.layout import read_object
from t2i.model.schedule import supporting
from t2i.model.single_file import UNET_PREFIX, VAE_PREFIX, Layout, Place, from_original, layout_in, place_of, tensors_of
from t2i.model.tensor_file import StoredTensors, write_tensors

_FLOATS = ("F64", "F32", "F16", "BF16")
_LATENT_CHANNELS = 4
_V_PRED, _ZTSNR = "v_pred", "ztsnr"
_PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
"""Values of `modelspec.prediction_type`, and what diffusers calls them."""


class SingleFile(NamedTuple):
    """A checkpoint in one file, which the family can train."""

    path: Path
    layout: Layout
    tensors: StoredTensors

    def check_fits(self, pipeline: Path, parts: Iterable[str], config: str) -> None:
        """Checks that the file has the tensors that the configurations of a pipeline expect.

        Args:
            pipeline: the folder with the configurations.
            parts: the parts whose weights come from the file.
            config: where the configurations come from, for the message.

        Raises:
            ValueError: if a tensor is missing or of another shape, or the UNet has further ones; names it.
        """
        remedy = f"set `base.config` to the configurations of this model, such as {self.layout.published}"
        for part in parts:
            places = self._places(pipeline / part, part)
            for name, shape in tensors_of(pipeline / part, part).items():
                if (stored := self._stored(places[name].name)) is None:
                    raise ValueError(f"{self.path}: no tensor {places[name].name}, though {config} has it ({part}): {remedy}")
                if self._shape(places[name], stored) != shape:
                    raise ValueError(
                        f"{self.path}: {stored} is {list(self.tensors.shape(stored))}, which does not fit {config} ({part}: "
                        f"{name} {list(shape)}): {remedy}"
                    )
            if part == "unet":
                known = {place.name for place in places.values()}
                if more := next((name for name in self.tensors if name.startswith(UNET_PREFIX) and name not in known), None):
                    raise ValueError(f"{self.path}: has {more}, which the UNet of {config} does not have: {remedy}")

    def check_kind(self, parts: Collection[str], config: str) -> None:
        """Checks that configurations are of the same kind of model, from the names of their parts.

        Raises:
            ValueError: if not; names the configurations for this file.
        """
        encoders = {name for name in parts if name.startswith("text_encoder")}
        if encoders != self.layout.text.keys():
            raise ValueError(
                f"`base.config` {config}: has {', '.join(sorted(encoders)) or 'no text encoder'}, but {self.path} is a "
                f"{self.layout.title} checkpoint: set it to the configurations of one, such as {self.layout.published}"
            )

    def write_scheduler(self, pipeline: Path) -> bool:
        """Writes what the file says of its prediction into the scheduler of a pipeline; returns whether it says something."""
        if not (changes := self.scheduler_changes()):
            return False
        kind, supported = supporting(pipeline, changes)
        file, index = pipeline / "scheduler" / "scheduler_config.json", pipeline / "model_index.json"
        write_json(file, read_object(file) | {"_class_name": kind.__name__} | dict(supported))
        write_json(index, read_object(index) | {"scheduler": ["diffusers", kind.__name__]})
        return True

    def scheduler_changes(self) -> dict[str, Any]:
        """Returns what the file says of its scheduler: by marker tensors, else by ModelSpec in its header.

        Raises:
            ValueError: if ModelSpec names a prediction type that cannot be trained.
        """
        changes: dict[str, Any] = {}
        if (stated := self.tensors.metadata.get("modelspec.prediction_type")) is not None:
            if stated.lower() not in _PREDICTION_TYPES:
                raise ValueError(
                    f"{self.path}: modelspec.prediction_type is {stated!r}, wanted epsilon or v: choose another base"
                )
            changes["prediction_type"] = _PREDICTION_TYPES[stated.lower()]
        if _V_PRED in self.tensors:
            changes["prediction_type"] = "v_prediction"
        if _ZTSNR in self.tensors:
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return changes

    def write(self, pipeline: Path, parts: Iterable[str]) -> None:
        """Writes the weights of parts into the folder of a pipeline, with one tensor in memory at a time.

        Raises:
            ValueError: if a value is NaN or infinite; names the tensor.
        """
        for part in parts:
            places, model = self._places(pipeline / part, part), pipeline / part
            stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"

            def read(name: str, places: dict[str, Place] = places) -> Tensor:
                stored = self._stored(places[name].name) or places[name].name
                check_finite(self.path, stored, tensor := self.tensors[stored])
                return from_original(places[name], tensor)

            write_tensors(model / f"{stem}.safetensors", places, read, {"format": "pt"})

    def _places(self, model: Path, part: str) -> dict[str, Place]:
        config = read_object(model / "config.json")
        return {name: place_of(self.layout, part, name, config) for name in tensors_of(model, part)}

    def _shape(self, place: Place, stored: str) -> tuple[int, ...] | None:
        """Returns the shape that a tensor of the file has in a pipeline; None if it has a wrong number of dimensions."""
        try:
            return tuple(from_original(place, torch.empty(self.tensors.shape(stored), device="meta")).shape)
        except (IndexError, RuntimeError):
            return None

    def _stored(self, name: str) -> str | None:
        """Returns the name of a tensor in the file, which in old files lacks `text_model.`, or None if it is not there."""
        return next((known for known in (name, name.replace(".text_model.", ".")) if known in self.tensors), None)


def find_single_file(local: Path) -> Path | None:
    """Returns the single file that `base.local` names: the file, or the only one in a folder that is no pipeline.

    Raises:
        ValueError: if the file does not exist, or the folder has several.
    """
    if not local.is_dir():
        if not local.exists() and local.suffix in (".safetensors", *PICKLES):
            raise ValueError(f"{local}: no such file: correct `base.local`")
        return local if local.exists() else None
    if any((local / name).exists() for name in ("model_index.json", "config.json", "adapter_config.json")):
        return None
    for suffixes in ((".safetensors",), PICKLES):
        found = sorted(path for path in local.iterdir() if path.suffix in suffixes)
        if len(found) > 1:
            raise ValueError(f"{local}: has {len(found)} single files: name one in `base.local`, such as {found[0]}")
        if found:
            return found[0]
    return None


def open_single_file(path: Path, section: Base) -> SingleFile:
    """Opens a single file, and checks that the family that the section names can train it.

    Raises:
        ValueError: if not, or if `base.config` is missing; says what the file is, and the remedy.
    """
    if path.suffix != ".safetensors":
        pickle = "is a pickle, which can run code" if path.suffix in PICKLES else "is not a safetensors file"
        raise ValueError(f"{path}: {pickle}: use the .safetensors file of this model")
    try:
        tensors = StoredTensors([path])
    except ValueError as error:
        raise ValueError(f"{error}: replace it with a complete file") from None
    layout = layout_in(tensors.keys())
    if layout is None:
        raise ValueError(f"{path}: {_described(tensors)}, wanted a whole checkpoint of Stable Diffusion 1.x, 2.x or XL")
    if layout.family != section.family:
        raise ValueError(
            f"{path}: is a {layout.title} checkpoint, which family {section.family} cannot train: set `base.family: "
            f"{layout.family}`"
        )
    _check_trainable(path, tensors, without_vae=section.vae is not None)
    if section.config is None:
        raise ValueError(
            f"`base.config` is null, but {path} is a single file, which has no configurations and tokenizers: set it to "
            f"{layout.published}, or to a folder with them"
        )
    return SingleFile(path, layout, tensors)


def _check_trainable(path: Path, tensors: StoredTensors, *, without_vae: bool) -> None:
    """Raises a ValueError if the checkpoint is of a special kind, quantized, or has no VAE."""
    channels = dict(enumerate(tensors.shape(f"{UNET_PREFIX}input_blocks.0.0.weight"))).get(1, 0)
    if channels != _LATENT_CHANNELS:
        what = SPECIAL_UNETS.get(channels - _LATENT_CHANNELS, "it is of another model")
        raise ValueError(f"{path}: its UNet takes {channels} channels, wanted {_LATENT_CHANNELS}: {what}; choose another base")
    if special := next((name for name in tensors if name.startswith("edm_")), None):
        raise ValueError(f"{path}: has {special}, which only EDM models have, such as Playground 2.5: choose another base")
    if not without_vae and f"{VAE_PREFIX}encoder.conv_in.weight" not in tensors:
        raise ValueError(f"{path}: has no VAE: set `base.vae` to one for this model, such as stabilityai/sd-vae-ft-mse")
    prefixes = (UNET_PREFIX, VAE_PREFIX, "cond_stage_model.", "conditioner.")
    for name in (name for name in tensors if name.startswith(prefixes) and not name.endswith("position_ids")):
        if (dtype := tensors.dtype(name)) not in _FLOATS:
            raise ValueError(f"{path}: {name} is {dtype}, wanted fp32, fp16 or bf16: use a file that is not quantized")


def _described(names: Collection[str]) -> str:
    """Returns what a file is that is no checkpoint, from the names of its tensors."""
    kinds = {
        "LoRA weights": ("lora_", ".lora", "hada_w1", "lokr_"),
        "a ControlNet": ("control_model.", "controlnet_"),
        "the refiner of SDXL": ("conditioner.embedders.0.model.",),
        "a UNet without text encoders": (f"{UNET_PREFIX}input_blocks.", "input_blocks."),
        "a model of another kind, such as SD 3 or Flux": ("joint_blocks.", "double_blocks.", "transformer_blocks.0.norm1"),
        "a single model in diffusers' layout": ("down_blocks.",),
        "a VAE": (VAE_PREFIX, "decoder.conv_in."),
        "a text encoder": ("text_model.", "resblocks."),
    }
    for kind, parts in kinds.items():
        if any(part in name for name in names for part in parts):
            return f"is {kind}"
    return f"has {len(names)} tensors, such as {min(names)!r}" if names else "has no tensors"
