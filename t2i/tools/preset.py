"""Applies a preset, a YAML file of changed parameters, to params.yaml, and keeps the comments there; undoes it."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from t2i.core.files import write_text
from t2i.core.params import ParamsError, read

_UNDO = ".undo.yaml"
"""What presets replaced, in the folder of the presets: `{place: {before, preset}}`."""


def presets(folder: Path) -> dict[str, str]:
    """Returns the purpose of each preset in a folder, by name: the comment on the first line of its file."""
    files = sorted((path for path in folder.glob("*.yaml") if path.name != _UNDO), key=lambda path: path.stem)
    first_lines = {path.stem: path.read_text(encoding="utf-8-sig").partition("\n")[0] for path in files}
    return {name: line.removeprefix("# ") for name, line in first_lines.items()}


def values_of(name: str, folder: Path) -> dict[str, Any]:
    """Returns what a preset sets: the value of each parameter, by its path, such as `train.steps`."""
    return dict(leaves(_load(folder / f"{name}.yaml")))


def values_applied(folder: Path) -> dict[str, Any]:
    """Returns what presets have set and `undo_preset` would put back, by path; empty if none was applied."""
    undo = folder / _UNDO
    return {place: value["preset"] for place, value in _load(undo).items()} if undo.exists() else {}


def write_preset(name: str, folder: Path, params_file: Path) -> list[str]:
    """Applies a preset to a parameter file, and keeps what it replaces in `<folder>/.undo.yaml`, for `undo_preset`.

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
    undo = folder / _UNDO
    replaced = _load(undo) if undo.exists() else {}
    whole = _load(params_file)
    changed = []
    for place, value in leaves(_load(path)):
        section, key = _section_of(whole, place, f"preset {name}")
        if (before := section[key]) != value:
            changed.append(f"{place}: {shown(before)} -> {shown(value)}")
            section[key] = value
            replaced[place] = {"before": replaced.get(place, {"before": before})["before"], "preset": value}
    _dump(whole, params_file)
    if changed:
        _dump(replaced, undo)
    return changed


def undo_preset(folder: Path, params_file: Path) -> list[str]:
    """Puts back the values that presets replaced, except those that were changed after that.

    Returns:
        One line per parameter that a preset changed, then one that says how to get the committed file.

    Raises:
        ParamsError: no preset was applied, or it was undone.
    """
    undo = folder / _UNDO
    if not undo.exists():
        raise ParamsError(f"{params_file}: no preset to undo; `git checkout {params_file}` gives back the committed file")
    read(params_file)
    whole = _load(params_file)
    lines = []
    for place, value in _load(undo).items():
        section, key = _section_of(whole, place, "undo")
        now = section[key]
        if now == value["preset"]:
            section[key] = value["before"]
            lines.append(f"{place}: {shown(now)} -> {shown(value['before'])}")
        else:
            lines.append(f"{place}: stays {shown(now)}, since the preset had set {shown(value['preset'])}")
    _dump(whole, params_file)
    undo.unlink()
    committed = f"`git checkout {params_file}` gives the file of the last commit, byte for byte and without later edits"
    return [*lines, committed]


def _yaml() -> YAML:
    """Returns a reader and writer of YAML that keeps comments and the form of each value."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 128, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda shown, _: shown.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def _load(file: Path) -> Any:
    return _yaml().load(file.read_text(encoding="utf-8-sig"))


def _dump(content: Any, file: Path) -> None:
    text = io.StringIO()
    _yaml().dump(content, text)
    write_text(file, text.getvalue())


def leaves(section: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path and the value of each parameter. A mapping with a `name` is one value: it is replaced as a whole."""
    for key, value in section.items():
        if isinstance(value, Mapping) and "name" not in value:
            yield from leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _section_of(whole: Any, place: str, who: str) -> tuple[Any, str]:
    """Returns the section that holds a parameter, and the key of the parameter in it."""
    *sections, key = place.split(".")
    for name in sections:
        whole = whole[name] if isinstance(whole, Mapping) and name in whole else {}
    if key not in whole:
        raise ParamsError(f"{who}: unknown parameter `{place}`")
    return whole, key


def shown(value: Any) -> str:
    """Returns the value of a parameter as a short text, in the form of YAML; a long list is counted only."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]" if len(value) < 5 else f"{len(value)} items"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
