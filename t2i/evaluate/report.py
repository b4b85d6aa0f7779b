"""Puts the outputs of the stages into image grids and on one HTML page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from pydantic import Field

from t2i.core.files import fresh
from t2i.core.params import Section
from t2i.data.cached import CachedRecords
from t2i.data.reader import read_tensors
from t2i.evaluate import advice
from t2i.evaluate.grid import draw_grid
from t2i.evaluate.heldout import DataFolders, HeldOut, captions, heldout, images_of, some_keys
from t2i.evaluate.motifs import in_captions, strange_to
from t2i.evaluate.page import embedded, provenance, render
from t2i.evaluate.section import Evaluate
from t2i.evaluate.verdict import Verdict, verdict
from t2i.model.family import Family, decoded
from t2i.model.latents import sample_latents

_SHOWN = 6
"""Number of image pairs in each of the smaller galleries of the page."""


Row = tuple[str, Sequence[Image.Image]]
"""A heading, such as a prompt, and its images."""


class Report(Section):
    """Section `report`: how much the page shows."""

    grid_prompts: int = Field(ge=1)
    """Number of held-out prompts shown side by side: base, fine-tuned and real."""
    most_steps: int = Field(ge=2)
    """Maximum number of steps shown of the samples during training: the first, the last, and some in between."""


@dataclass(frozen=True)
class StageOutputs:
    """The outputs of the other stages that the report reads."""

    data: DataFolders
    validation_prompts: Path
    samples: Path
    reports: Path
    validation: Path
    model: Path


def evaluate_report(
    shown: Report,
    section: Evaluate,
    family: Family,
    tuned: Family,
    outputs: StageOutputs,
    parameters: str,
    pictures: Path,
    page: Path,
    device: str,
) -> tuple[Verdict, list[advice.Warning]]:
    """Writes grid.png, training.png and moments.png to `pictures`, and the page; returns its verdict and its warnings.

    Args:
        shown: the section `report`.
        section: the section `evaluate`.
        family: the base, whose VAE decodes cached moments and latents.
        tuned: the fine-tuned model.
        outputs: the outputs of the other stages.
        parameters: the text of params.yaml, for the page.
        pictures: the output folder for the image grids.
        page: the HTML file to write.
        device: the device that the VAE runs on.
    """
    captions_of = captions(outputs.data)
    side_by_side = _side_by_side(shown.grid_prompts, heldout(section, outputs.data), outputs.samples)
    training = _training(family, outputs, shown.most_steps, device)
    moments = [(captions_of[key][0], pair) for key, pair in _moments(family, outputs.data, section.seed, device)]
    _write_pictures(pictures, side_by_side, moments, training)
    report = _reports(outputs.reports)
    if not _asked_alike(family, tuned):
        del report["evaluate/metrics.json"]["heldout_loss_base"]
    metrics = _metrics(report, section, training, captions_of)
    warnings = advice.warnings(metrics)
    nearest = _nearest(report["evaluate/nearest.json"], outputs, captions_of)
    galleries = _galleries(side_by_side, _retention(section, outputs.samples), nearest, moments, training)
    facts = provenance(outputs.model, outputs.data.raw, report)
    judged = verdict(metrics)
    render(page, outputs.reports, report, judged, warnings, galleries, facts, parameters)
    return judged, warnings


def _metrics(
    report: dict[str, Any], section: Evaluate, training: "Training", captions_of: dict[str, list[str]]
) -> advice.StageMetrics:
    texts = [text for its in captions_of.values() for text in its]
    return advice.StageMetrics(
        evaluation=report["evaluate/metrics.json"],
        intervals=report["evaluate/intervals.json"],
        images=report["encode-images/metrics.json"],
        captions=report["encode-captions/metrics.json"],
        familiar=in_captions(section.retention_prompts, texts),
        strange=strange_to([prompt for prompt, _ in training.rows], texts),
    )


def _galleries(
    side_by_side: list[Row], retention: list[Row], nearest: list[Row], moments: list[Row], training: "Training"
) -> dict[str, Any]:
    return {
        "side_by_side": _cards(side_by_side, ("base", "fine-tuned", "real")),
        "retention": _cards(retention, ("base", "fine-tuned")),
        "nearest": _cards(nearest, ("sample", "training image")),
        "moments": _cards(moments, ("image", "decoded")),
        "steps": training.steps,
        "training": [(prompt, [embedded(image) for image in row]) for prompt, row in training.rows],
    }


def _write_pictures(pictures: Path, side_by_side: list[Row], moments: list[Row], training: "Training") -> None:
    with fresh(pictures) as folder:
        draw_grid(side_by_side, ("base", "fine-tuned", "real"), folder / "grid.png")
        draw_grid(moments, ("image", "decoded"), folder / "moments.png")
        if training.rows:
            draw_grid(training.rows, [str(step) for step in training.steps], folder / "training.png", across=1)


def _reports(folder: Path) -> dict[str, Any]:
    """Returns the contents of the JSON files that the stages wrote, by path in the folder."""
    paths = folder.glob("*/*.json")
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _asked_alike(base: Family, tuned: Family) -> bool:
    """Returns whether both predict the same quantity at the same noise levels, so that their losses are comparable."""
    return base.prediction_type == tuned.prediction_type and torch.equal(base.alphas_cumprod, tuned.alphas_cumprod)


def _side_by_side(most: int, records: HeldOut, samples: Path) -> list[Row]:
    rows: list[Row] = []
    for key, prompt, real in list(zip(records.keys, records.prompts, records.real, strict=True))[:most]:
        rows.append((prompt, [_opened(samples / "base" / f"{key}.png"), _opened(samples / "model" / f"{key}.png"), real]))
    return rows


class Training(NamedTuple):
    """The samples drawn during training."""

    steps: list[int]
    rows: list[Row]


def _training(family: Family, outputs: StageOutputs, most: int, device: str) -> Training:
    prompts = json.loads((outputs.validation_prompts / "prompts.json").read_text(encoding="utf-8"))
    files = sorted(outputs.validation.glob("step-*.safetensors")) if prompts else []
    if len(files) > most:
        files = [files[round(n * (len(files) - 1) / (most - 1))] for n in range(most)]
    drawn = [decoded(family, read_tensors(file)["latents"], device) for file in files]
    rows = zip(prompts, zip(*drawn, strict=True), strict=True)
    return Training([int(file.stem.removeprefix("step-")) for file in files], list(rows))


def _moments(family: Family, data: DataFolders, seed: int, device: str) -> list[Row]:
    """Returns rows of a held-out record's key, its image, and the image decoded from its cached moments."""
    records = CachedRecords(data.latents, data.embeds, "heldout", data.storage)
    keys = some_keys(data, "heldout", _SHOWN, seed)
    numbers = records.numbers(keys)
    stored = torch.stack([records.moments(numbers[key])[0] for key in keys])
    rebuilt = decoded(family, sample_latents(stored, None, family.scaling_factor, family.shift_factor), device)
    sources = images_of(data, "heldout", keys)
    return [(key, [source, image]) for key, source, image in zip(keys, sources, rebuilt, strict=True)]


def _retention(section: Evaluate, samples: Path) -> list[Row]:
    folders = [samples / which / "retention" for which in ("base", "model")]
    return [
        (prompt, [_opened(folder / f"{number:03d}.png") for folder in folders])
        for number, prompt in enumerate(section.retention_prompts)
    ]


def _nearest(rows: list[dict[str, Any]], outputs: StageOutputs, captions_of: dict[str, list[str]]) -> list[Row]:
    rows = rows[:_SHOWN]
    train = images_of(outputs.data, "train", [row["train_key"] for row in rows])
    return [
        (
            f"{captions_of[row['key']][0]} | {captions_of[row['train_key']][0]}",
            [_opened(outputs.samples / "model" / f"{row['key']}.png"), image],
        )
        for row, image in zip(rows, train, strict=True)
    ]


def _cards(rows: Sequence[Row], captions: Sequence[str]) -> list[dict[str, Any]]:
    """Returns cards for the page: a heading, and embedded images with captions."""
    return [
        {"heading": heading, "pictures": [(caption, embedded(image)) for caption, image in zip(captions, images, strict=True)]}
        for heading, images in rows
    ]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
