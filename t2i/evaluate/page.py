"""The report: one self-contained HTML page with images, metrics, curves and warnings."""

import base64
import csv
import io
import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.core.files import write_text
from t2i.evaluate import charts
from t2i.evaluate.advice import Warning
from t2i.evaluate.metrics import METRICS
from t2i.evaluate.verdict import Verdict
from t2i.model.tuned import weights_digest

Reports = dict[str, dict[str, Any]]
"""The JSON files that the stages wrote, by path, such as `train/metrics.json`."""

_SPLITS = {"train": "training records", "heldout": "held-out records"}


def render(
    page: Path,
    folder: Path,
    reports: Reports,
    verdict: Verdict,
    warnings: list[Warning],
    galleries: dict[str, Any],
    provenance: dict[str, str],
    parameters: str,
) -> None:
    """Fills in the template page.html and writes the page, with all images embedded.

    Args:
        page: the HTML file to write.
        folder: the folder with the reports of the stages, for the curves.
        reports: the contents of their JSON files.
        verdict: what the metrics say about the model.
        warnings: the warnings to show.
        galleries: the images, by their variable in the template.
        provenance: what the model was made from, one row per fact.
        parameters: the text of params.yaml.
    """
    metrics = reports["evaluate/metrics.json"]
    write_text(
        page,
        _template().render(
            verdict=verdict,
            demonstration=any(part.endswith("base/openmoji") for part in provenance["base"].split(", ")),
            warnings=warnings,
            figures=figures(metrics, reports["evaluate/intervals.json"]),
            prompts=metrics["prompts"],
            charts=curves(folder),
            psnr=f"{reports['encode-images/metrics.json']['psnr_mean']:.1f}",
            provenance=provenance,
            parameters=parameters,
            **galleries,
        ),
    )


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = lambda text: Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))
    return environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def embedded(image: Image.Image, most_px: int = 256) -> str:
    """Returns an image as a data URI, scaled down if a side is longer than most_px."""
    image = image.convert("RGB")
    image.thumbnail((most_px, most_px), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    image.save(written, "webp", quality=90, method=4)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"


def figures(metrics: dict[str, float | int], intervals: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Returns one row per metric, for the table of the page."""
    rows = []
    for name, metric in METRICS.items():
        if name in metrics:
            base, model = metrics.get(f"{name}_base"), metrics[name]
            rows.append(
                {
                    "name": name,
                    "base": "not comparable" if base is None else _figure(base),
                    "base_interval": None if base is None else _interval(intervals.get(f"{name}_base")),
                    "model": _figure(model),
                    "interval": _interval(intervals.get(name)),
                    "better": base is not None and metric.better * (model - base) > 0,
                    "real": _figure(metrics[metric.real]) if metric.real else "",
                    "says": metric.says,
                }
            )
    return rows


def curves(reports: Path) -> list[dict[str, str]]:
    """Returns the charts of the page, each with a title and an explanation."""
    history, validation = _rows(reports / "train/history.csv"), _rows(reports / "train/validation.csv")
    model, base = _rows(reports / "evaluate/timesteps.csv"), _rows(reports / "evaluate-base/timesteps.csv")
    timesteps = [{**one, "base": other["heldout_loss"]} for one, other in zip(model, base, strict=True)]
    loss = charts.lines(history, "step", {"loss": "weighted", "mse": "unweighted"}, "loss")
    names = {"ema_heldout": "held-out, EMA", "ema_train": "training, EMA", "raw_heldout": "held-out, raw weights"}
    progress = charts.lines(validation, "step", names, "denoising loss")
    names = {"base": "base, held-out", "heldout_loss": "fine-tuned, held-out", "train_loss": "fine-tuned, training"}
    by_timestep = charts.lines(timesteps, "timestep", names, "denoising loss")
    axes = {"cmmd": "CMMD (style; lower is better)", "prompt_retrieval": "prompt retrieval (content)"}
    guidance = charts.path(_rows(reports / "evaluate/guidance.csv"), axes, "guidance_scale")
    return [
        {"title": title, "svg": svg, "says": says}
        for title, svg, says in (
            (
                "Training loss",
                loss,
                "Training minimizes the weighted loss. Use the unweighted loss to compare runs with different weightings.",
            ),
            ("Held-out and training records", progress, "If the two EMA curves move apart, the model overfits."),
            (
                "Loss by timestep",
                by_timestep,
                "Small timesteps have little noise and decide detail. Large ones decide composition.",
            ),
            (
                "Guidance scale",
                guidance,
                "Each point is a guidance scale; up and left is better. Choose one with `evaluate.guidance_scale`.",
            ),
        )
    ]


def provenance(model: Path, raw: Path, reports: Reports) -> dict[str, str]:
    """Returns what the model was made from, one row per fact."""
    described = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    origin = json.loads((model / "source.json").read_text(encoding="utf-8")) if (model / "source.json").is_file() else {}
    try:
        git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "not in a git checkout"
    images, captions, train = (reports[f"{stage}/metrics.json"] for stage in ("encode-images", "encode-captions", "train"))
    return {
        "base": ", ".join(str(value) for value in origin.values() if value is not None) or "not recorded",
        "dataset": _dataset(described),
        "records": f"{images['records']}, with {captions['captions']} captions",
        "training": f"{train['steps']} steps",
        "model": f"sha256 of its trained weights: {weights_digest(model)[:16]}",
        "git commit of this report": commit,
        "versions": ", ".join(
            f"{name} {version(name)}" for name in ("t2i", "torch", "diffusers", "transformers", "accelerate")
        ),
    }


def _rows(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _interval(pair: list[float] | None) -> str:
    return f"{_figure(pair[0])} to {_figure(pair[1])}" if pair else ""


def _figure(value: float) -> str:
    """Returns a number with three significant digits, and commas instead of an exponent: `0.0125`, `2,730`."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"


def _dataset(described: dict[str, Any]) -> str:
    """Returns the content of dataset.json as text: where the dataset is from, its counts and the start of its digests."""
    counts = ", ".join(f"{described['records'][split]} {name}" for split, name in _SPLITS.items())
    digests = (f"sha256 of its {name}: {described[name][:16]}" for name in ("images", "captions"))
    told = (value for name, value in described.items() if name not in ("records", "tags", "images", "captions"))
    return ", ".join([*(str(value) for value in told if value is not None), counts, *digests])
