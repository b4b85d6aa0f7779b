"""Parameters: params.yaml read strictly, so that a mistake is one line and never a silent default.

Each section's model stands beside the code that it configures; this module has what they share: the strict base class,
the type of a regular expression, the reader, and what finds a plug-in (a source, a family) by its module's name.
"""

import difflib
import importlib
import math
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
    """A parameter file that cannot be used: commands end with exit code 2."""


class Section(BaseModel):
    """One section of params.yaml: frozen, complete, strict about types, and without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


_MOST_BYTES, _MOST_VALUES, _MOST_PROBLEMS = 100_000, 100_000, 5
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 200, 200

Kind = TypeVar("Kind", bound=Section)


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{_shown(pattern)} is no regular expression: {error}") from None
    return pattern


Regex = Annotated[str, AfterValidator(_compiles)]


def load_section(params_file: Path, name: str, kind: type[Kind]) -> Kind:
    """Returns one section of a parameter file, checked against its model.

    Args:
        params_file: the YAML 1.2 file, read by ruamel (so `1e-05`, which DVC writes, is a number).
        name: the section's dotted name, such as `encode.images`.
        kind: the section's class.

    Raises:
        ParamsError: naming the file, the key's path, what was got, what was wanted, and the nearest right name.
    """
    try:
        return check(kind, read_section(params_file, name), name)
    except ParamsError as error:
        raise ParamsError(f"{params_file}: {error}") from None


def check(kind: type[Kind], node: Any, place: str) -> Kind:
    """Returns some parsed YAML as a model.

    Raises:
        ParamsError: one sentence a problem, each with its key's path, which starts with `place`.
    """
    try:
        return kind.model_validate(node)
    except ValidationError as error:
        known = sorted(_field_names(kind))
        problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
        sentences = [_sentence(_path(place, problem["loc"], node), problem, known) for problem in problems[:_MOST_PROBLEMS]]
        more = [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        raise ParamsError("; ".join(sentences + more)) from None


def resolve_plugin(package: str, name: object) -> Any:
    """Returns the module `package.name`; an unknown name is answered with the list of the folder.

    Raises:
        ParamsError: where the package has no such module.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))
    if name not in known:
        raise ParamsError(f"{name!r} is no module of {package}: it has {_listed(known)}{_nearest(str(name), known)}")
    return importlib.import_module(f"{package}.{name}")


def read_section(params_file: Path, name: str) -> Any:
    """Returns one section of a parameter file as it is written, unchecked.

    Raises:
        ParamsError: where it is not there.
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
    """Returns a parameter file as it is written, unchecked.

    Raises:
        ParamsError: where it is not there, or no YAML with sections.
    """
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ParamsError(f"{path}: {size} bytes, wanted at most {_MOST_BYTES}: is it a parameter file?")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; name another with --params") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise ParamsError(f"{path}: {error.strerror}; name another with --params") from None
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
    if _expanded(node, {}) > _MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {_MOST_VALUES} values; write them out, or use fewer")
    return yaml.constructor.construct_document(node)


def _expanded(node: Node, known: dict[Node, float]) -> float:
    """Returns how many values a node has with its aliases written out: infinitely many where one stands inside itself."""
    if node not in known:
        known[node] = math.inf
        parts = node.value if isinstance(node.value, list) else []
        inner = [part for entry in parts for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[node] = 1.0 + sum(_expanded(part, known) for part in inner)
    return known[node]


def _field_names(annotation: Any) -> set[str]:
    """Every parameter's name in a model, and in those it holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        return set(fields).union(*(_field_names(field.annotation) for field in fields.values()))
    return set().union(*(_field_names(part) for part in get_args(annotation)))


def _path(place: str, location: tuple[int | str, ...], node: Any) -> str:
    """The dotted path of a key; pydantic's location has the names of a union's alternatives too, which the file has not."""
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
        return f"`{key}` is no parameter{_nearest(str(problem['loc'][-1])[:80], known)}"
    if problem["type"] == "missing":
        return f"`{key}` is missing (nothing has a default in the code: every parameter stands in the file)"
    message = problem["msg"].removeprefix("Value error, ")
    got = "" if isinstance(problem["input"], dict) else f", got {_shown(problem['input'])} ({type(problem['input']).__name__})"
    return f"`{key}`: {message[0].lower()}{message[1:]}{got}"


def _shown(value: object) -> str:
    """The start of a value: a few aliases of lists of aliases make one that has no end."""
    return _REPR.repr(value)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else f"; it takes {_listed(known)}" if known else ""


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:50]) or "nothing"
