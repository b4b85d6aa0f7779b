"""Verb: write a preset, a file of differences, into params.yaml, whose comments stay."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from t2i.core.files import write_text
from t2i.core.params import ParamsError


def presets(folder: Path) -> dict[str, str]:
    """Returns what each preset of a folder is for: the comment on the first line of its file."""
    first_lines = {path.stem: path.read_text(encoding="utf-8").partition("\n")[0] for path in sorted(folder.glob("*.yaml"))}
    return {name: line.removeprefix("# ") for name, line in first_lines.items()}


def write_preset(name: str, folder: Path, params_file: Path) -> list[str]:
    """Changes a parameter file to what a preset says.

    Returns:
        What was changed, a line a parameter: `train.steps: 1500 -> 15000`.

    Raises:
        ParamsError: where there is no such preset, or it has a key that the file has not.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ParamsError(f"{name!r} is no preset: {folder} has {', '.join(presets(folder)) or 'none'}")
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 128, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda shown, _: shown.represent_scalar("tag:yaml.org,2002:null", "null"))
    whole = yaml.load(params_file.read_text(encoding="utf-8"))
    changed = _merge(whole, yaml.load(path.read_text(encoding="utf-8")), name)
    text = io.StringIO()
    yaml.dump(whole, text)
    write_text(params_file, text.getvalue())
    return changed


def _merge(node: Any, differences: Mapping[str, Any], preset: str, place: str = "") -> list[str]:
    """Puts differences into a section; a choice of another `name` replaces the one that stands there."""
    changed = []
    for key, value in differences.items():
        if key not in node:
            raise ParamsError(f"preset {preset}: `{place}{key}` is no parameter")
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
        return f"[{', '.join(map(_shown, value))}]" if len(value) < 5 else f"{len(value)} of them"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
