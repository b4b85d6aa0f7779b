"""Private: keeps paths of this machine and tokens out of what is published."""

import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from t2i.tools.preset import leaves

_PLACES = ("base.", "fetch.", "runtime.store", "runtime.shard_cache.folder")
"""The parameters that can be paths, or the address of a private store, begin with these."""
_STATED = re.compile(r'("_?name_or_path"\s*:\s*)"((?:/|[A-Za-z]:\\\\)[^"]*)"')
"""Where configurations of transformers and diffusers state the folder that a model was loaded from."""


def short(path: str) -> str:
    """Returns an absolute path or a URL as its last name, and any other text as it is."""
    if path.startswith("~") or "://" in path or PurePosixPath(path).is_absolute():
        return PurePosixPath(path).name
    return PureWindowsPath(path).name if PureWindowsPath(path).is_absolute() else path


def without_paths(parameters: str, values: Mapping[str, Any]) -> str:
    """Returns the text of a parameter file with every absolute path shortened to its last name.

    Args:
        parameters: the text.
        values: its content.
    """
    paths = {value for place, value in leaves(values) if place.startswith(_PLACES) for value in _texts(value)}
    for path in sorted(paths, key=len, reverse=True):
        if short(path) != path:
            parameters = parameters.replace(path, short(path))
    return parameters


def without_stated_paths(configuration: str) -> str:
    """Returns the text of a model's JSON file without the folder of this machine that the model was loaded from."""
    return _STATED.sub(_shortened, configuration)


def _shortened(found: re.Match[str]) -> str:
    path = json.loads(f'"{found[2]}"')
    return f"{found[1]}{json.dumps(short(path))}"


def check_private(folder: Path) -> None:
    """Checks that no file in a folder holds a path of this machine or a token.

    Raises:
        ValueError: if one does; names the file and the path, but not the token.
    """
    secrets = {needle.encode(): name for needle, name in _secrets()}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = 8 + int.from_bytes(content[:8], "little")
            end = header if file.suffix == ".safetensors" else len(content)  # what follows the header are numbers
            for needle, name in secrets.items():
                if content.find(needle, 0, end) >= 0:
                    raise ValueError(f"{file.relative_to(folder)}: holds {name}; remove it where the file comes from")


def _secrets() -> Iterator[tuple[str, str]]:
    """Yields what must not be published, and what to call it in a message."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        if token := os.environ.get(name, "").strip():
            yield token, f"the value of {name}"
    here = {Path.cwd(), Path(os.environ.get("PWD", ".")).absolute(), Path.home(), Path.home().resolve()}
    for path in {str(folder) for folder in here if len(folder.parts) > 1}:
        for written in {path, json.dumps(path)[1:-1], path.replace("\\", "/")}:
            yield f"{written}{'/' if '/' in written else ''}", f"the path {path}"
            if Path(path).parts[2:]:
                yield written, f"the path {path}"


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts in a parameter's value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)
