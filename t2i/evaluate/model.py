"""Samples and measures a fine-tuned model on the same prompts and seeds as the base."""

import json
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import Field

from t2i.core.files import to_csv, write_text
from t2i.core.params import Section
from t2i.evaluate.evaluator import Evaluation, Evaluator, rounded
from t2i.evaluate.metrics import cmmd, prompt_retrieval
from t2i.model.sampling import Sampler


class Sweep(Section):
    """Section `sweep`: the curve of content against style over guidance scales."""

    adapter_scale: float = Field(ge=0)
    """Strength of an adapter in the images and errors of the fine-tuned model. 1: as trained. Has no effect without one."""
    guidance_scales: list[Annotated[float, Field(ge=1)]]
    """Guidance scales to sample the fine-tuned model at, in addition to `evaluate.guidance_scale`."""
    prompts: int = Field(ge=2)
    """Maximum number of held-out prompts sampled at each scale."""


_OF_THE_DATA = ("prompts", "cmmd_floor", "kid_floor", "prompt_retrieval_real")


def evaluate_model(
    sweep: Sweep, evaluator: Evaluator, sampler: Sampler, samples: Path, base_report: Path, report: Path
) -> Evaluation:
    """Writes the model's samples and metrics, together with the base's metrics, and a curve over guidance scales.

    Returns:
        The result of Evaluator.evaluate, plus the base's metrics as NAME_base and the metrics of real images.
    """
    evaluation = evaluator.evaluate(sampler, samples)
    for name, value in json.loads((base_report / "metrics.json").read_text(encoding="utf-8")).items():
        evaluation.metrics[name if name in _OF_THE_DATA else f"{name}_base"] = value
    for name, interval in json.loads((base_report / "intervals.json").read_text(encoding="utf-8")).items():
        evaluation.intervals[f"{name}_base"] = interval
    evaluation.write(report)
    write_text(report / "guidance.csv", to_csv(_guidance_curve(sweep, evaluator, sampler, samples)))
    return evaluation


def _guidance_curve(sweep: Sweep, evaluator: Evaluator, sampler: Sampler, samples: Path) -> list[dict[str, float | int]]:
    """Returns content and style at several guidance scales, on the first held-out prompts."""
    count = min(sweep.prompts, len(evaluator.records.keys))
    keys, prompts = evaluator.records.keys[:count], evaluator.records.prompts[:count]
    rows = []
    for scale in sorted({evaluator.section.guidance_scale, *sweep.guidance_scales}):
        if scale == evaluator.section.guidance_scale:
            drawn = [Image.open(samples / f"{key}.png").convert("RGB") for key in keys]
        else:
            drawn = evaluator.draw(sampler, prompts, keys, scale)
        features = evaluator.clip.image_features(drawn)
        rows.append(
            {
                "guidance_scale": scale,
                "prompt_retrieval": rounded(prompt_retrieval(features, evaluator.prompts[:count])),
                "cmmd": rounded(cmmd(evaluator.real[:count], features)),
            }
        )
    return rows
