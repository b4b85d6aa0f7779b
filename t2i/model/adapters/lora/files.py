"""The files of a LoRA: in PEFT's layout for diffusers, in kohya's layout for ComfyUI and A1111, and what says how it was made.

pytorch_lora_weights.safetensors   unet.MODULE.lora_A.weight, .lora_B.weight, .lora_magnitude_vector; alpha in the header
lora.safetensors                   lora_unet_MODULE.lora_down.weight, .lora_up.weight, .alpha: kohya's names; see why_not_kohya
adapter.json, source.json          how to open it, and the base that it belongs to
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from t2i.core.files import write_json
from t2i.model.adapter import ADAPTER_FILE, Facts
from t2i.model.adapters.lora.header import header, is_sdxl
from t2i.model.adapters.lora.merging import Factors, by_module
from t2i.model.adapters.lora.original import has_original_layout, original_name
from t2i.model.adapters.lora.targets import TARGETS
from t2i.model.adapters.lora.use import KOHYA_FILE, PEFT_FILE, how_to_use, stated_for_use
from t2i.model.checks import in_one_line
from t2i.model.export import in_precision
from t2i.model.family import Family
from t2i.model.layout import read_object
from t2i.model.precision import Precision
from t2i.model.tensor_file import write_tensors

if TYPE_CHECKING:
    from t2i.model.adapters.lora.adapter import Adapter


def write_adapter(
    lora: "Adapter", unet: Any, weights: Mapping[str, Tensor], family: Family, facts: Facts, out: Path, precision: Precision
) -> str:
    """Writes the files of a LoRA; returns how to use them, as Markdown. The arguments are those of `Adapter.export`."""
    factors = by_module(weights)
    peft = {
        f"unet.{module}.{factor}{'' if factor == 'lora_magnitude_vector' else '.weight'}": tensor
        for module, parts in factors.items()
        for factor, tensor in parts.items()
    }
    metadata = {"lora_adapter_metadata": json.dumps(_peft_config(lora), sort_keys=True)}
    _save(peft, out / PEFT_FILE, precision, metadata)
    lacks = why_not_kohya(lora, unet.config)
    if lacks is None:
        kohya = kohya_layout(factors, lora.alpha / lora.rank, unet.config)
        metadata = header(lora, unet.config, family.prediction_type, facts)
        _save(kohya, out / KOHYA_FILE, precision, metadata)
    stated = lora.model_dump() | {"weights": PEFT_FILE, "scheduler_changes": dict(facts.scheduler_changes)}
    stated |= stated_for_use(family, facts) | {"without_kohya": lacks, "mergeable": has_original_layout(unet.config)}
    write_json(out / ADAPTER_FILE, stated)
    write_json(out / "source.json", dict(facts.base))
    for licence in family.folder.glob("LICENSE*"):
        shutil.copyfile(licence, out / licence.name)
    return how_to_use(stated, facts, precision)


def _save(tensors: Mapping[str, Tensor], file: Path, precision: Precision, metadata: Mapping[str, str]) -> None:
    # DoRA's norms hardly move in training, so half precision would round away what they learnt.
    norms = {name: tensor for name, tensor in tensors.items() if "magnitude" in name}
    others = {name: tensor for name, tensor in tensors.items() if name not in norms}
    cast = in_precision(others, file.name, precision) | in_precision(norms, file.name, "fp32")
    write_tensors(file, cast, cast.__getitem__, {"format": "pt", **metadata})


def why_not_kohya(lora: "Adapter", config: Mapping[str, Any]) -> str | None:
    """Returns why there is no file in kohya's layout, for the card; None if there is one."""
    if lora.dora:
        return "it is a DoRA, and diffusers would drop its norms from a file in kohya's layout"
    if not has_original_layout(config):
        return "no other program has a UNet with its layers"
    return None


def kohya_layout(factors: Factors, alpha_by_rank: float, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns factors in kohya's layout. It names modules as diffusers does; those of SDXL as the original layout does.

    alpha / rank is multiplied into `lora_up`, and `alpha` is the rank: some readers ignore `alpha`, others need it.

    Args:
        factors: by module of the UNet.
        alpha_by_rank: alpha / rank.
        config: configuration of the UNet.
    """
    tensors: dict[str, Tensor] = {}
    for module, parts in factors.items():
        name = f"lora_unet_{(original_name(module, config) if is_sdxl(config) else module).replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = parts["lora_A"]
        tensors[f"{name}.lora_up.weight"] = alpha_by_rank * parts["lora_B"]
        tensors[f"{name}.alpha"] = torch.tensor(float(len(parts["lora_A"])))
    return tensors


def read_adapter(folder: Path) -> tuple[Factors, float]:
    """Returns the factors of a LoRA by module, and alpha / rank.

    Raises:
        ValueError: if a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    stated = read_object(folder / ADAPTER_FILE)
    try:
        return by_module(load_file(folder / PEFT_FILE)), stated["alpha"] / stated["rank"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / PEFT_FILE}: damaged ({in_one_line(error)}): restore it, or train again") from None


def _peft_config(lora: "Adapter") -> dict[str, Any]:
    """Returns what PEFT needs to know besides the tensors; a key that an older PEFT does not know would be an error there."""
    known = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": TARGETS[lora.targets], "use_dora": lora.dora}
    return {f"unet.{key}": value for key, value in known.items()}
