"""Parameters: reads params.yaml strictly, so that a mistake is a one-line error and never a silent default.

The model of each section is beside the code that it configures. This module has the shared parts: the strict base class, the
types of a regular expression and of a path, the reader, and the function that finds a plug-in (a source, a family) by the name
of its module.
"""

import difflib
import importlib
import math
import os
import pkgutil
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node


class ParamsError(ValueError):
    """A parameter file is not valid; commands exit with code 2."""


class Section(BaseModel):
    """One section of params.yaml: frozen, strict about types; every key is required, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


_MAX_BYTES, _MAX_VALUES, _MAX_PROBLEMS = 100_000, 100_000, 5
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 200, 200

Kind = TypeVar("Kind", bound=Section)


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{_shown(pattern)} is not a regular expression: {error}") from None
    return pattern


Regex = Annotated[str, AfterValidator(_compiles)]


def _has_slashes(path: str) -> str:
    if "\\" in path and os.sep == "/":
        raise ValueError("write / instead of \\")
    return path


LocalPath = Annotated[str, AfterValidator(_has_slashes)]
"""A path on this machine; refuses Windows' separators where they are none."""


def load_section(params_file: Path, name: str, kind: type[Kind]) -> Kind:
    """Returns one section of a parameter file, validated by its model.

    Args:
        params_file: the YAML 1.2 file. ruamel reads it, so `1e-05`, as DVC writes it, is a number.
        name: the section's dotted name, such as `encode.images`.
        kind: the section's class.

    Raises:
        ParamsError: if the section is not valid; says the file, the path of the key, what was got, what was wanted, and the
            nearest known name.
    """
    node = read_section(params_file, name)
    try:
        return check(kind, node, name)
    except ParamsError as error:
        raise ParamsError(f"{params_file}: {error}") from None


def check(kind: type[Kind], node: Any, place: str) -> Kind:
    """Returns parsed YAML as a model.

    Raises:
        ParamsError: if it is not valid; one sentence per problem, each with the path of the key, which starts with `place`.
    """
    try:
        return kind.model_validate(node)
    except ValidationError as error:
        known = sorted(_field_names(kind))
        problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
        sentences = [_sentence(_path(place, problem["loc"], node), problem, known) for problem in problems[:_MAX_PROBLEMS]]
        more = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        raise ParamsError("; ".join(sentences + more)) from None


def resolve_plugin(package: str, name: object) -> Any:
    """Returns the module `package.name`.

    Raises:
        ParamsError: if the package has no such module; lists the modules that it has.
    """
    if name not in (known := plugins(package)):
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        raise ParamsError(f"{name!r} is not a module of {package}: it has {_listed(known)}{meant}")
    return importlib.import_module(f"{package}.{name}")


def plugins(package: str) -> list[str]:
    """Returns the names of the modules of a package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))


def read_section(params_file: Path, name: str) -> Any:
    """Returns one section of a parameter file, without validation.

    Raises:
        ParamsError: if the file has no such section, or cannot be read.
    """
    node: Any = read(params_file)
    walked: list[str] = []
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            known = list(node) if isinstance(node, dict) else []
            place = ".".join(walked) or "the top level"
            raise ParamsError(f"{params_file}: no section `{name}`: {place} has {_listed(known)}")
        node = node[part]
        walked.append(part)
    return node


def read(path: Path) -> dict[str, Any]:
    """Returns the content of a parameter file, without validation.

    Raises:
        ParamsError: if the file does not exist, or is not YAML with sections.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise ParamsError(f"{path}: {size} bytes, wanted at most {_MAX_BYTES}: is it a parameter file?")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; pass another one with --params") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: not UTF-8 at byte {error.start}: save the file as UTF-8") from None
    except OSError as error:
        raise ParamsError(f"{path}: {error.strerror}; pass another file with --params") from None
    try:
        content = _parsed(text)
    except (YAMLError, RecursionError) as error:
        raise ParamsError(f"{path}: not YAML 1.2: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ParamsError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ParamsError(
            f"{path}: wanted sections such as `train:`, got {'an empty file' if content is None else _shown(content)}"
        )
    return content


def _parsed(text: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    node = yaml.compose(text)
    if node is None:
        return None
    if _expanded(node, {}) > _MAX_VALUES:
        raise ValueError(f"its aliases expand to more than {_MAX_VALUES} values; use fewer aliases, or write the values out")
    return yaml.constructor.construct_document(node)


def _expanded(node: Node, known: dict[Node, float]) -> float:
    """Returns the number of values in a node after its aliases are expanded; infinity if an alias contains itself."""
    if node not in known:
        known[node] = math.inf
        parts = node.value if isinstance(node.value, list) else []
        inner = [part for entry in parts for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[node] = 1.0 + sum(_expanded(part, known) for part in inner)
    return known[node]


def _field_names(annotation: Any) -> set[str]:
    """Returns the name of every parameter in a model and in its nested models."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        return set(fields).union(*(_field_names(field.annotation) for field in fields.values()))
    return set().union(*(_field_names(part) for part in get_args(annotation)))


def _path(place: str, location: tuple[int | str, ...], node: Any) -> str:
    """Returns the dotted path of a key, without the names of union members that pydantic adds to its location."""
    if not location:
        return place
    *above, last = location
    path = [place]
    for part in above:
        if isinstance(node, dict) and part in node:
            path.append(str(part))
            node = node[part]
    return ".".join([*path, str(last)[:80]])


def _sentence(key: str, problem: ErrorDetails, known: list[str]) -> str:
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ParamsError):
        return str(cause)
    if problem["type"] == "extra_forbidden":
        return f"`{key}` is not a parameter{_nearest(str(problem['loc'][-1])[:80], known)}"
    if problem["type"] == "missing":
        return f"`{key}` is missing: add it to the file (no parameter has a default in the code)"
    message = problem["msg"].removeprefix("Value error, ")
    got = "" if isinstance(problem["input"], dict) else f", got {_shown(problem['input'])} ({type(problem['input']).__name__})"
    return f"`{key}`: {message[0].lower()}{message[1:]}{got}"


def _shown(value: object) -> str:
    """Returns the start of a value's repr, because nested aliases can make a huge value."""
    return _REPR.repr(value)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else f"; wanted one of {_listed(known)}" if known else ""


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:50]) or "nothing"
