"""Model card: the README.md of a published model, with metadata for the Hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t2i.evaluate.metrics import METRICS
from t2i.evaluate.page import figures
from t2i.evaluate.verdict import Verdict
from t2i.tools.differences import Differences
from t2i.tools.licences import Origin
from t2i.tools.revision import Revision
from t2i.tools.usage import Usage

_MARKS = re.compile(r"([\\`*_\[\]<>|#~&])")


class Sample(NamedTuple):
    """A picture that the model drew."""

    prompt: str
    file: str


class Card(NamedTuple):
    """The facts that the card states."""

    usage: Usage
    base: Origin
    dataset: Origin
    base_facts: Mapping[str, str]
    """What source.json has besides name and commit."""
    dataset_facts: Mapping[str, str]
    """What dataset.json has besides name, commit and licence."""
    licence: str
    """An identifier of the Hub."""
    licence_files: list[str]
    """The files in the folder with the text of the base's licence."""
    samples: list[Sample]
    verdict: Verdict
    metrics: dict[str, float | int]
    intervals: dict[str, list[float]]
    settings: Mapping[str, Any]
    """`num_inference_steps` and `guidance_scale` of the evaluation."""
    parameters: str
    """The text of params.yaml, as it is published."""
    redacted: bool
    """Whether it has absolute paths that are shortened."""
    differences: Differences
    revision: Revision
    reads_local: bool
    """Whether the images came from a local folder."""
    digests: Mapping[str, str]
    versions: str

    @property
    def title(self) -> str:
        """The base and the dataset."""
        return f"{self.base.name.rpartition('/')[2]}, fine-tuned on {self.dataset.name}"


def render_card(card: Card) -> str:
    """Returns the card as Markdown, with a YAML header.

    Raises:
        ValueError: if the client of the Hub does not accept the metadata.
    """
    rows = [
        row | {"direction": "higher" if METRICS[row["name"]].better > 0 else "lower"}
        for row in figures(card.metrics, card.intervals)
    ]
    return str(
        _template().render(
            card._asdict()
            | {
                "metadata": _metadata(card),
                "title": card.title,
                "licence_files": [f"[{name}]({name})" for name in card.licence_files],
                "says": card.usage.says,
                "code": card.usage.code,
                "figures": rows,
                "prompts": card.metrics["prompts"],
                "unknown": [origin.what for origin in (card.base, card.dataset) if origin.licence is None],
                "commands": _commands(card),
                "reproduction": _reproduction(card),
                **card.settings,
            }
        )
    )


def plain(text: object) -> str:
    """Returns a text as one line that Markdown and HTML show as it is."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def code(text: str) -> str:
    """Returns a text as code in a cell of a table; empty if it is empty."""
    shown = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`" if shown else ""


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"md": plain, "code": code}
    return environment.from_string(Path(__file__).with_name("model_card.md").read_text(encoding="utf-8"))


def _metadata(card: Card) -> str:
    """Returns the YAML header, as the Hub's own client writes it."""
    from huggingface_hub import EvalResult, ModelCardData

    said = dict(card.usage.metadata) | {"license": card.licence}
    if card.licence == "other":
        said["license_name"] = "base-and-dataset"
        if card.licence_files:
            said["license_link"] = card.licence_files[0]
    if card.dataset.hub:
        said["datasets"] = [card.dataset.name]
    if card.samples:
        said["widget"] = [{"text": sample.prompt, "output": {"url": sample.file}} for sample in card.samples]
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=card.dataset.name if card.dataset.hub else "custom",
            dataset_name=f"{card.dataset.name}, held-out records",
            metric_type=name,
            metric_value=card.metrics[name],
            dataset_revision=card.dataset.commit,
        )
        for name in METRICS
        if name in card.metrics
    ]
    return str(ModelCardData(model_name=card.title, eval_results=results, **said).to_yaml())


def _commands(card: Card) -> list[str]:
    """Returns the commands that make the model again."""
    commit = card.revision.commit
    checkout = [f"git checkout {commit}"] if commit else []
    return [
        "git clone REPOSITORY t2i && cd t2i",
        *checkout,
        "pip install -r requirements.txt && pip install --no-deps -e .",
        "cp FOLDER/params.yaml params.yaml",
        "dvc repro",
    ]


def _reproduction(card: Card) -> list[str]:
    """Returns what to know about the commands."""
    notes = ["`REPOSITORY` is the git repository of the run, `FOLDER` the folder with this card."]
    if card.revision.commit is None:
        notes.append(
            "The run was not in a git repository with a commit: the sha256 of the code says whether yours is the same."
        )
    elif card.revision.changed:
        files = ", ".join(f"`{path}`" for path in card.revision.changed[:5])
        more = f" and {len(card.revision.changed) - 5} others" if len(card.revision.changed) > 5 else ""
        notes.append(f"The run had **uncommitted changes** in {files}{more}.")
    local = [] if card.base.hub else ["the base from `base.local`"]
    local += ["images and captions from `fetch.local`"] if card.reads_local else []
    if local:
        notes.append(f"The run read {' and '.join(local)}: put the same files there, unless they are in git.")
    notes.append("Other versions of the libraries, or another processor, change the last digits.")
    return notes
