"""Sections: all of params.yaml, for commands that need the parameters of every stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.core.params import ParamsError, Section, load_section, read, read_section
from t2i.encode.captions import EncodeCaptions
from t2i.encode.views import EncodeImages
from t2i.evaluate.model import Sweep
from t2i.evaluate.report import Report
from t2i.evaluate.section import Evaluate
from t2i.fetch.dataset import Fetch
from t2i.model.base import Base
from t2i.model.runtime import Runtime
from t2i.train.section import Train

MODELS: dict[str, type[Section]] = {
    "base": Base,
    "fetch": Fetch,
    "encode.images": EncodeImages,
    "encode.captions": EncodeCaptions,
    "train": Train,
    "evaluate": Evaluate,
    "sweep": Sweep,
    "report": Report,
    "runtime": Runtime,
}
"""The model of each section, in the order of params.yaml."""


@dataclass(frozen=True)
class Sections:
    """All sections, validated."""

    base: Base
    fetch: Fetch
    encode_images: EncodeImages
    encode_captions: EncodeCaptions
    train: Train
    evaluate: Evaluate
    sweep: Sweep
    report: Report
    runtime: Runtime


def unread(path: Path) -> list[str]:
    """Returns the sections of a parameter file that no stage reads: typing errors, or sections of other tools."""
    named, within = read(path), read_section(path, "encode")
    known = {section.partition(".")[0] for section in MODELS}
    return [str(name) for name in named if name not in known] + [
        f"encode.{name}" for name in within if f"encode.{name}" not in MODELS
    ]


def load_sections(path: Path) -> Sections:
    """Returns all sections of a parameter file.

    Raises:
        ParamsError: a section is invalid. The message has one line per problem.
    """
    found: dict[str, Any] = {}
    problems = []
    for name, model in MODELS.items():
        try:
            found[name.replace(".", "_")] = load_section(path, name, model)
        except ParamsError as error:
            problems.append(str(error))
    if problems:
        raise ParamsError("\n".join(dict.fromkeys(problems)))
    return Sections(**found)
