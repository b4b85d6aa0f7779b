"""Single file: writes a pipeline as one safetensors file in the original layout, which ComfyUI and A1111 read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from t2i.core.files import whole
from t2i.fetch.weights import pick_weights
from t2i.model.checks import check_models
from t2i.model.layout import parts, read_object
from t2i.model.precision import DTYPES, Precision
from t2i.model.schedule import read_schedule
from t2i.model.single_file import Change, Layout, layout_of, place_of, to_original
from t2i.model.tensor_file import StoredTensors, write_tensors
from t2i.model.vae import read_scaling

_CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
_PUBLISHED_WIDTHS = {"stable-diffusion-v1": 768, "stable-diffusion-v2-512": 1024, "stable-diffusion-xl-v1-base": 2048}
"""The `cross_attention_dim` by which ComfyUI and A1111 recognize a UNet."""


class Written(NamedTuple):
    """What a single file holds."""

    layout: Layout
    tensors: int
    notes: list[str]
    """What a user of the file has to know."""


def stored_tensors(model: Path) -> StoredTensors:
    """Returns the tensors of one part of a pipeline, each read when it is asked for.

    Raises:
        ValueError: if its safetensors files are missing or damaged.
    """
    found = pick_weights(model, [file.name for file in model.iterdir()], None)
    return StoredTensors(model / file for file in found.names.values())


def write_single_file(
    model: Path, unet: Mapping[str, Tensor], file: Path, precision: Precision, scheduler_changes: Mapping[str, Any]
) -> Written:
    """Writes a pipeline as one file, with one tensor in memory at a time; the file appears when it is whole.

    Args:
        model: folder of the pipeline, for all parts but the UNet's weights.
        unet: all weights of the UNet.
        file: the output.
        precision: that of its weights.
        scheduler_changes: changes to its scheduler configuration, with the names of diffusers.

    Raises:
        ValueError: if the original layout has no place for a tensor, or a value is too large for fp16; names the tensor.
    """
    layout, configs = _checked(model)
    tensors: dict[str, Mapping[str, Tensor]] = {part: stored_tensors(model / part) for part in configs if part != "unet"}
    tensors["unet"] = unet
    made = original_tensors(layout, tensors, configs)
    made |= _layers_that_add_nothing(model, layout, made)
    schedule = read_schedule(model, scheduler_changes)
    if schedule.prediction_type == "v_prediction":
        zero_snr = schedule.alphas_cumprod[-1] == 0
        made |= {name: partial(torch.zeros, 0) for name in ("v_pred", *(["ztsnr"] if zero_snr else []))}

    def read(name: str) -> Tensor:
        return _cast(made[name](), name, precision)

    with whole(file) as partial_file:
        write_tensors(partial_file, made, read, _header(model, layout, file.stem, schedule.prediction_type))
    return Written(layout, len(made), _notes(layout, configs["unet"], schedule.prediction_type))


def _checked(model: Path) -> tuple[Layout, dict[str, dict[str, Any]]]:
    """Returns the layout of a pipeline, and the configurations of its models; raises a ValueError if it has none."""
    present = [part for part in _CLASSES if part in parts(model)]
    if missing := {"unet", "vae", "text_encoder"} - {*present}:
        raise ValueError(f"{model}: has no {min(missing)}, which the single files of Stable Diffusion have")
    check_models(model, {part: _CLASSES[part] for part in present})
    configs = {part: read_object(model / part / "config.json") for part in present}
    shift = configs["unet"].get("resnet_time_scale_shift", "default")
    if shift != "default":
        raise ValueError(
            f"{model}: the UNet has resnet_time_scale_shift {shift!r}, which no single file of Stable Diffusion has: ComfyUI "
            "and A1111 cannot run it; use the folder with diffusers"
        )
    return layout_of(present, configs["unet"]), configs


def original_tensors(
    layout: Layout, tensors: Mapping[str, Mapping[str, Tensor]], configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Callable[[], Tensor]]:
    """Returns what makes each tensor of a single file, by its name there.

    Args:
        layout: the layout of the file.
        tensors: the tensors of each part.
        configs: the configuration of each part.
    """
    sources: dict[str, tuple[Change, list[Callable[[], Tensor]]]] = {}
    for part in layout.prefixes:
        places = {name: place_of(layout, part, name, configs[part]) for name in tensors[part] if "position_ids" not in name}
        for name, place in sorted(places.items(), key=lambda item: item[1].third):
            sources.setdefault(place.name, (place.change, []))[1].append(partial(tensors[part].__getitem__, name))
    return {name: partial(_made, change, reads) for name, (change, reads) in sources.items()}


def _made(change: Change, reads: Sequence[Callable[[], Tensor]]) -> Tensor:
    return to_original(change, [read() for read in reads])


def _cast(tensor: Tensor, name: str, precision: Precision) -> Tensor:
    """Returns a tensor in a precision; raises a ValueError if a value becomes infinite."""
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(DTYPES[precision])
    if precision == "fp16" and not torch.isfinite(cast).all():
        raise ValueError(f"{name} is not finite in fp16 (largest magnitude {tensor.abs().max():.3g}): use --dtype bf16 or fp32")
    return cast


def _layers_that_add_nothing(
    model: Path, layout: Layout, made: Mapping[str, Callable[[], Tensor]]
) -> dict[str, Callable[[], Tensor]]:
    """Returns layers in the place of those that `base.clip_skip` removed, whose outputs are zero.

    ComfyUI and A1111 build the text encoder with all its layers. A layer adds its outputs to its input, so that with these it
    returns its input: the file draws the same images, whatever number of layers they are told to skip.
    """
    origin = read_object(model / "source.json") if (model / "source.json").is_file() else {}
    count, prefix = int(origin.get("clip_skip") or 0), layout.text["text_encoder"]
    layers = f"{prefix}{'transformer.resblocks' if prefix.endswith('.model.') else 'text_model.encoder.layers'}."
    kept = read_object(model / "text_encoder" / "config.json").get("num_hidden_layers", 0)
    last = {name: make for name, make in made.items() if name.startswith(f"{layers}{kept - 1}.")}
    return {
        name.replace(f"{layers}{kept - 1}.", f"{layers}{kept + number}."): partial(_zeros_like, make)
        for number in range(count)
        for name, make in last.items()
    }


def _zeros_like(make: Callable[[], Tensor]) -> Tensor:
    return torch.zeros_like(make())


def _header(model: Path, layout: Layout, title: str, prediction_type: str) -> dict[str, str]:
    """Returns the metadata of the file, as ModelSpec 1.0.1 names it (github.com/Stability-AI/ModelSpec)."""
    unet = read_object(model / "unet" / "config.json")
    velocity = prediction_type == "v_prediction"
    architecture = layout.architecture
    if velocity and architecture == "stable-diffusion-v2-512":
        architecture = "stable-diffusion-v2-768-v"
    header = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": "https://github.com/Stability-AI/generative-models",
        "title": title,
        "prediction_type": "v" if velocity else "epsilon",
    }
    if isinstance(size := unet.get("sample_size"), int):
        side = size * read_scaling(model / "vae").vae_factor
        header["resolution"] = f"{side}x{side}"
    return {"format": "pt"} | {f"modelspec.{key}": value for key, value in header.items()}


def _notes(layout: Layout, unet: Mapping[str, Any], prediction_type: str) -> list[str]:
    """Returns what ComfyUI and A1111 do not find out from the file."""
    notes, width = [], unet.get("cross_attention_dim")
    if width != (wanted := _PUBLISHED_WIDTHS[layout.architecture]):
        notes.append(
            f"ComfyUI and A1111 know the published UNets only: they take embeddings of width {wanted}, this one {width}; "
            "diffusers reads the file with `from_single_file(file, config=folder)`"
        )
    if prediction_type == "v_prediction" and layout.family != "sdxl":
        notes.append(
            "this model predicts v, which the file of a Stable Diffusion 1.x or 2.x cannot say: in ComfyUI, add the node "
            "ModelSamplingDiscrete with v_prediction; for A1111, see docs/files.md"
        )
    return notes
