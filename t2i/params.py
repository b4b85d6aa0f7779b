"""Parameters: params.yaml read strictly, so that a mistake is one line and never a silent default.

Each section's model stands beside the code that it configures; this module has what they share: the strict base class,
the reader, and the type of a plug-in (a source, a family) named by its module.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


class ParamsError(ValueError):
    """A parameter file that cannot be used: commands end with exit code 2."""


class Params(BaseModel):
    """One section of params.yaml: frozen, complete, strict about types, and without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


Section = TypeVar("Section", bound=Params)


def load(path: Path, section: str, model: type[Section]) -> Section:
    """Returns one section of a parameter file, checked against its model.

    Args:
        path: the YAML 1.2 file, read by ruamel (so `1e-05`, which DVC writes, is a number).
        section: its dotted name, such as `encode.images`.
        model: the section's class.

    Raises:
        ParamsError: naming the file, the key's path, what was got, what was wanted, and the nearest right name.
    """
    node: Any = _read(path)
    walked: list[str] = []
    for name in section.split("."):
        if not isinstance(node, dict) or name not in node:
            known = list(node) if isinstance(node, dict) else []
            place = ".".join(walked) or "the top level"
            raise ParamsError(f"{path}: no section `{section}`: {place} has {_listed(known)}")
        node = node[name]
        walked.append(name)
    try:
        return model.model_validate(node)
    except ValidationError as error:
        problems = [_sentence(section, problem, error_model) for problem, error_model in _problems(error, model)]
        raise ParamsError(f"{path}: " + "; ".join(problems)) from None


def resolve_plugin(package: str, name: object) -> Any:
    """Returns the module `package.name`; an unknown name is answered with the list of the folder.

    Raises:
        ValueError: where the package has no such module.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))
    if name not in known:
        raise ValueError(f"{name!r} is no module of {package}: it has {_listed(known)}{_nearest(str(name), known)}")
    return importlib.import_module(f"{package}.{name}")


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; name another with --params") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: not UTF-8 at byte {error.start}") from None
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ParamsError(f"{path}: not YAML 1.2: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: wanted sections such as `train:`, got {'an empty file' if content is None else repr(content)}")
    return content


def _problems(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[dict[str, Any], type[BaseModel] | None]]:
    """Yields each problem with the model that its last key belongs to, where it is a model's."""
    for problem in error.errors(include_url=False):
        owner: Any = model
        for part in problem["loc"][:-1]:
            field = owner.model_fields.get(part) if isinstance(owner, type) and issubclass(owner, BaseModel) else None
            owner = _model_of(field.annotation, part) if field else _model_of(owner, part)
        yield dict(problem), owner if isinstance(owner, type) and issubclass(owner, BaseModel) else None


def _model_of(annotation: Any, tag: object) -> Any:
    """The model behind an annotation: itself, or the alternative of a union (kept for the tag that follows)."""
    alternatives = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
    for alternative in alternatives:
        name = alternative.model_fields.get("name")
        if name is not None and tag in getattr(name.annotation, "__args__", ()):
            return alternative
    return alternatives[0] if len(alternatives) == 1 else annotation


def _sentence(section: str, problem: dict[str, Any], owner: type[BaseModel] | None) -> str:
    parts = [str(part) for part in problem["loc"] if not str(part).startswith("function-")]
    key = ".".join([section, *parts])
    known = list(owner.model_fields) if owner else []
    if problem["type"] == "extra_forbidden":
        return f"`{key}` is no parameter{_nearest(parts[-1], known)}"
    if problem["type"] == "missing":
        return f"`{key}` is missing (nothing has a default in the code: every parameter stands in the file)"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    got = problem["input"]
    return f"`{key}`: {message}" + ("" if isinstance(got, dict) else f", got {got!r} ({type(got).__name__})")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else f"; it takes {_listed(known)}" if known else ""


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"
