"""Verb: sample and measure a fine-tuned model, on the prompts and seeds that the base was measured on."""

import json
from pathlib import Path

from PIL import Image

from t2i.clip import Clip
from t2i.family import Family
from t2i.metrics import Metrics, measure, rounded
from t2i.report import draw_grid
from t2i.sampling import Evaluate, Inputs, heldout, sample
from t2i.work import fresh, write_json

_OF_THE_DATA = ("prompts", "cmmd_floor", "prompt_retrieval_real")


def evaluate_model(
    params: Evaluate,
    family: Family,
    inputs: Inputs,
    samples: Path,
    base_samples: Path,
    base_report: Path,
    grid: Path,
    report: Path,
    *,
    batch_size: int,
    device: str,
) -> Metrics:
    """Writes the model's images, a picture of base, fine-tuned and real side by side, and metrics.json.

    Returns:
        The metrics of metrics.measure; each of the base's beside it, as NAME_base; and what real images score.
    """
    records, clip = heldout(params, inputs), Clip(inputs.clip, device, batch_size)
    drawn = sample(params, family, records, samples, batch_size=batch_size, device=device)
    metrics = measure(params, family, inputs, records, drawn, clip, batch_size=batch_size, device=device)
    for name, value in json.loads(base_report.read_text(encoding="utf-8")).items():
        metrics[name if name in _OF_THE_DATA else f"{name}_base"] = value
    rows: list[tuple[str, tuple[Image.Image, ...]]] = []
    for key, prompt, fine_tuned, real in zip(records.keys, records.prompts, drawn, records.real, strict=True):
        if len(rows) < params.grid_prompts:
            rows.append((prompt, (Image.open(base_samples / f"{key}.png").convert("RGB"), fine_tuned, real)))
    with fresh(grid) as folder:
        draw_grid(rows, ("base", "fine-tuned", "real"), folder / "grid.png")
    write_json(report, rounded(metrics))
    return rounded(metrics)
