"""Verb: put what the stages left into pictures, and on one page."""

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
from t2i.data.batches import CachedRecords
from t2i.data.pixels import to_image
from t2i.data.shards import read_tensors
from t2i.evaluate import advice
from t2i.evaluate.grid import draw_grid
from t2i.evaluate.heldout import DataFolders, HeldOut, captions, heldout, images_of, some_keys
from t2i.evaluate.page import embedded, provenance, render
from t2i.evaluate.section import Evaluate
from t2i.model.family import Family
from t2i.model.latents import sample_latents

_SHOWN = 6
"""Pairs of pictures in each of the page's smaller galleries."""


Row = tuple[str, Sequence[Image.Image]]
"""A prompt and its pictures."""


class Report(Section):
    """Section `report`: what the page shows."""

    grid_prompts: int = Field(ge=1)
    """Held-out prompts shown side by side, base, fine-tuned and real."""
    most_steps: int = Field(ge=2)
    """Columns, at most, of the samples through training: first, last, and some between them."""


@dataclass(frozen=True)
class Left:
    """What the other stages left."""

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
    left: Left,
    parameters: str,
    pictures: Path,
    page: Path,
    device: str,
) -> list[advice.Warning]:
    """Writes grid.png, training.png and moments.png into `pictures`, and the page; returns its warnings.

    Args:
        shown: the section `report`.
        section: the section `evaluate`.
        family: the base, whose VAE decodes what was cached.
        tuned: the fine-tuned model.
        left: what the other stages left.
        parameters: the text of params.yaml, for the page.
        pictures: folder for the pictures.
        page: the HTML file.
        device: where the VAE runs.
    """
    said = captions(left.data)
    side_by_side = _side_by_side(shown.grid_prompts, heldout(section, left.data), left.samples)
    training = _training(family, left, shown.most_steps, device)
    moments = [(said[key][0], pair) for key, pair in _moments(family, left.data, section.seed, device)]
    _write_pictures(pictures, side_by_side, moments, training)
    report = _reports(left.reports)
    if not _asked_alike(family, tuned):
        del report["evaluate/metrics.json"]["heldout_loss_base"]
    stages = ("evaluate/metrics.json", "evaluate/intervals.json", "encode-images/metrics.json", "encode-captions/metrics.json")
    warnings = advice.warnings(advice.Figures(*(report[stage] for stage in stages)))
    nearest = _nearest(report["evaluate/nearest.json"], left, said)
    galleries = _galleries(side_by_side, _retention(section, left.samples), nearest, moments, training)
    render(page, left.reports, report, warnings, galleries, provenance(left.model, left.data.raw, report), parameters)
    return warnings


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
    """What the stages wrote, by its path in the folder."""
    paths = folder.glob("*/*.json")
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _asked_alike(base: Family, tuned: Family) -> bool:
    """Whether both predict the same, from the same noise levels: else their denoising losses do not compare."""
    return base.prediction_type == tuned.prediction_type and torch.equal(base.alphas_cumprod, tuned.alphas_cumprod)


def _side_by_side(most: int, records: HeldOut, samples: Path) -> list[Row]:
    rows: list[Row] = []
    for key, prompt, real in list(zip(records.keys, records.prompts, records.real, strict=True))[:most]:
        rows.append((prompt, [_opened(samples / "base" / f"{key}.png"), _opened(samples / "model" / f"{key}.png"), real]))
    return rows


class Training(NamedTuple):
    """What was drawn through training."""

    steps: list[int]
    rows: list[Row]


def _training(family: Family, left: Left, most: int, device: str) -> Training:
    prompts = json.loads((left.validation_prompts / "prompts.json").read_text(encoding="utf-8"))
    files = sorted(left.validation.glob("step-*.safetensors")) if prompts else []
    if len(files) > most:
        files = [files[round(n * (len(files) - 1) / (most - 1))] for n in range(most)]
    decoded = [_decoded(family, read_tensors(file)["latents"], device) for file in files]
    rows = zip(prompts, zip(*decoded, strict=True), strict=True)
    return Training([int(file.stem.removeprefix("step-")) for file in files], list(rows))


def _moments(family: Family, data: DataFolders, seed: int, device: str) -> list[Row]:
    """Keys of some held-out records with their image and what their cached moments decode to."""
    records = CachedRecords(data.latents, data.embeds, "heldout")
    keys = some_keys(data, "heldout", _SHOWN, seed)
    stored = torch.stack([records.moments(records.keys.index(key))[0] for key in keys])
    decoded = _decoded(family, sample_latents(stored, None, family.scaling_factor, family.shift_factor), device)
    sources = images_of(data, "heldout", keys)
    return [(key, [source, image]) for key, source, image in zip(keys, sources, decoded, strict=True)]


def _decoded(family: Family, latents: torch.Tensor, device: str) -> list[Image.Image]:
    vae = family.load_vae(device)
    return [to_image(family.decode_latents(vae, one[None].to(device))[0]) for one in latents.float()]


def _retention(section: Evaluate, samples: Path) -> list[Row]:
    folders = [samples / which / "retention" for which in ("base", "model")]
    return [
        (prompt, [_opened(folder / f"{number:03d}.png") for folder in folders])
        for number, prompt in enumerate(section.retention_prompts)
    ]


def _nearest(rows: list[dict[str, Any]], left: Left, said: dict[str, list[str]]) -> list[Row]:
    rows = rows[:_SHOWN]
    train = images_of(left.data, "train", [row["train_key"] for row in rows])
    return [
        (f"{said[row['key']][0]} | {said[row['train_key']][0]}", [_opened(left.samples / "model" / f"{row['key']}.png"), image])
        for row, image in zip(rows, train, strict=True)
    ]


def _cards(rows: Sequence[Row], captions: Sequence[str]) -> list[dict[str, Any]]:
    """Returns what the page shows of some rows: a heading, and pictures with captions."""
    return [
        {"heading": heading, "pictures": [(caption, embedded(image)) for caption, image in zip(captions, images, strict=True)]}
        for heading, images in rows
    ]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
