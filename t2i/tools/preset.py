"""Applies a preset, a YAML file of changed parameters, to params.yaml, and keeps the comments there."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from t2i.core.files import write_text
from t2i.core.params import ParamsError, read


def presets(folder: Path) -> dict[str, str]:
    """Returns the purpose of each preset in a folder, by name: the comment on the first line of its file."""
    first_lines = {path.stem: path.read_text(encoding="utf-8-sig").partition("\n")[0] for path in sorted(folder.glob("*.yaml"))}
    return {name: line.removeprefix("# ") for name, line in first_lines.items()}


def write_preset(name: str, folder: Path, params_file: Path) -> list[str]:
    """Applies a preset to a parameter file.

    Returns:
        One line per changed parameter, such as `train.steps: 1500 -> 15000`.

    Raises:
        ParamsError: the preset does not exist, or it has a key that the parameter file does not have.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ParamsError(
            f"{folder}: no preset {name!r}; choose one of: {', '.join(presets(folder)) or '(the folder has no presets)'}"
        )
    for file in (params_file, path):
        read(file)  # says what is wrong with it
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 128, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda shown, _: shown.represent_scalar("tag:yaml.org,2002:null", "null"))
    whole = yaml.load(params_file.read_text(encoding="utf-8-sig"))
    changed = _merge(whole, yaml.load(path.read_text(encoding="utf-8-sig")), name)
    text = io.StringIO()
    yaml.dump(whole, text)
    write_text(params_file, text.getvalue())
    return changed


def _merge(node: Any, differences: Mapping[str, Any], preset: str, place: str = "") -> list[str]:
    """Writes changed values into a section. A value with a `name` replaces the whole previous value."""
    changed = []
    for key, value in differences.items():
        if key not in node:
            raise ParamsError(f"preset {preset}: unknown parameter `{place}{key}`")
        chosen = isinstance(value, Mapping) and "name" in value
        if isinstance(value, Mapping) and not chosen:
            changed += _merge(node[key], value, preset, f"{place}{key}.")
        elif node[key] != value:
            changed.append(f"{place}{key}: {_shown(node[key])} -> {_shown(value)}")
            node[key] = value
    return changed


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]" if len(value) < 5 else f"{len(value)} items"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
