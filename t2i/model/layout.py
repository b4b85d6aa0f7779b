"""Layout: the configuration files of a pipeline in diffusers' layout, read with errors that name the file and the remedy."""

import json
import re
from pathlib import Path
from typing import Any

from t2i.model.base import NOT_TAKEN


def parts(pipeline: Path) -> dict[str, list[str]]:
    """Returns library and class of the parts in model_index.json that are used here, by name.

    Raises:
        ValueError: if the folder is not a pipeline in diffusers' layout, or the name of a part is unsafe.
    """
    file = pipeline / "model_index.json"
    if not file.is_file():
        remedy = "name a folder with model_index.json, or in `base.local` a single file (.safetensors)"
        if any((pipeline / name).is_file() for name in ("adapter_config.json", "pytorch_lora_weights.safetensors")):
            remedy = "it holds LoRA weights, which need a pipeline: name that one"
        elif (pipeline / "config.json").is_file():
            remedy = (
                f"it is a single {read_object(pipeline / 'config.json').get('_class_name', 'model')}: name a whole pipeline"
            )
        raise ValueError(f"{file}: missing: {pipeline} is not a pipeline in diffusers' layout; {remedy}")
    entries = read_object(file).items()
    found = {name: kind for name, kind in entries if isinstance(kind, list) and any(kind[:1]) and name not in NOT_TAKEN}
    for name in found:
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"{file}: unsafe name {name!r}, wanted the name of a part, such as `unet`")
        if not all(isinstance(word, str) for word in found[name]):
            raise ValueError(f"{file}: got {name} {found[name]!r}, wanted the names of a library and a class: restore the file")
    return found


def setting(model: Path, name: str) -> int:
    """Returns an integer of a model's config.json.

    Raises:
        ValueError: if it is missing or not an integer.
    """
    value = read_object(model / "config.json").get(name)
    if not isinstance(value, int):
        raise ValueError(f"{model / 'config.json'}: got {name} = {value!r}, wanted an integer: restore the original file")
    return value


def read_object(file: Path) -> dict[str, Any]:
    """Returns the content of a file that holds a JSON object."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: got a JSON {type(content).__name__}, wanted a JSON object: restore the original file")
    return content


def read_json(file: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: missing: restore it, or download the model again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}): restore the original file") from None
