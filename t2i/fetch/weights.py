"""Weights: finds the safetensors files of a model, and checks that they are complete and have only finite numbers."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from t2i.core.files import write_json
from t2i.model.layout import read_object

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
"""The ends of the names of files that can run code when they are loaded."""


@dataclass(frozen=True)
class Weights:
    """The weight files of a model, of one variant."""

    names: dict[str, str]
    """The name of each file, by the name without variant, which loaders expect."""
    index: str | None
    """The index that says which tensor is in which file; None if there is one file."""

    def write_index(self, model: Path, out: Path) -> None:
        """Writes the index of a model into its copy, with the names of the files there."""
        if self.index:
            content, renamed = read_object(model / self.index), {found: name for name, found in self.names.items()}
            content["weight_map"] = {tensor: renamed[file] for tensor, file in content["weight_map"].items()}
            write_json(out / f"{_stem(model)}.safetensors.index.json", content)


def pick_weights(model: Path, files: Collection[str], variant: str | None) -> Weights:
    """Returns the weight files of a model.

    Args:
        model: the folder with its config.json and its indices.
        files: the names of all files of the model, here or on the Hub.
        variant: such as `fp16`; None for the plain weights.

    Raises:
        ValueError: if they are missing, incomplete, of another variant, or not safetensors; says which.
    """
    stem, infix = _stem(model), f".{variant}" if variant else ""
    if (single := f"{stem}{infix}.safetensors") in files:
        return Weights({f"{stem}.safetensors": single}, None)
    indices = (
        f"{stem}.safetensors.index{infix}.json",
        f"{stem}.safetensors{infix}.index.json",
    )  # the second is diffusers' old one
    index = next((name for name in indices if name in files), None)
    if index is None:
        raise ValueError(f"{model}: {_other_weights(stem, files, variant)}")
    listed = read_object(model / index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{model / index}: no `weight_map`: restore the original file")
    shards = sorted({Path(str(file)).name for file in listed.values()})
    if missing := [file for file in shards if file not in files]:
        raise ValueError(f"{model / missing[0]}: missing, though {index} lists it: restore it, or download the model again")
    return Weights({file.replace(infix, "", 1) if infix else file: file for file in shards}, index)


def _stem(model: Path) -> str:
    """Returns the name of the weights without extension, which diffusers and transformers choose differently."""
    return "diffusion_pytorch_model" if "_class_name" in read_object(model / "config.json") else "model"


def _other_weights(stem: str, files: Collection[str], variant: str | None) -> str:
    """Says which weights a model has instead of the wanted ones, and what to do."""
    named = re.compile(rf"{stem}(?:-\d+-of-\d+)?(?:\.([\w-]+?))?(?:-\d+-of-\d+)?\.safetensors")
    found = sorted(
        {str(match[1]) if match[1] else "null" for file in files if (match := named.fullmatch(file))} - {str(variant)}
    )
    wanted = f"wanted {stem}{f'.{variant}' if variant else ''}.safetensors"
    if found and f"{variant or 'null'}" not in found:
        what = "plain weights" if found == ["null"] else f"the variant {' and '.join(found)}"
        return f"{wanted}, found only {what}: set `base.variant: {found[0]}`"
    if found:
        return f"{wanted}, found shards of it without an index: restore {stem}.safetensors.index.json"
    if pickled := sorted(file for file in files if file.endswith(PICKLES)):
        return (
            f"{wanted}, found {pickled[0]} (pickles, such as .bin, can run code and are not accepted): convert it with "
            "`model.save_pretrained(folder, safe_serialization=True)`"
        )
    return f"{wanted}, found no weights: restore the file, or download the model again"


def check_weights(file: Path) -> None:
    """Checks the tensors of a safetensors file one by one, with at most one in memory.

    Raises:
        ValueError: if the file is not complete, or a tensor has NaN or infinite values; names the file and the tensor.
    """
    from safetensors import SafetensorError, safe_open

    remedy = f"delete {file.resolve()}, then run the command again" if file.is_symlink() else "replace it with a complete file"
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                check_finite(file, name, tensors.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: not a complete safetensors file ({' '.join(str(error).split())}): {remedy}") from None


def check_finite(file: Path, name: str, tensor: Tensor) -> None:
    """Checks one tensor of a file.

    Raises:
        ValueError: if it has NaN or infinite values; names it.
    """
    if not tensor.is_floating_point():
        return
    if not torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all():
        raise ValueError(f"{file}: tensor {name} has NaN or infinite values: use weights with finite values only")
