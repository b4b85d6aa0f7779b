"""Runs train_text_to_image.py and this pipeline on the embedded base: the same images, batch, rate, precision and steps.

python -m benchmarks.against_diffusers PATH/TO/diffusers/examples/text_to_image/train_text_to_image.py

Needs torchvision, as the script does, and TensorBoard. The event files of TensorBoard give the speed of both, in samples per
second, over the steps after the first twentieth: neither start-up nor shutdown counts. The pipeline encodes once and the script
at each step, so the time of encoding is listed on its own. The losses are not equal, since each draws its own noise, but the
smoothed curves should lie on each other. Writes against_diffusers.json and .png beside this file.
"""

import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import typer
from ruamel.yaml import YAML
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from benchmarks.measured import ROOT, measured

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main(
    script: Annotated[Path, typer.Argument(help="Path of train_text_to_image.py in a checkout of huggingface/diffusers.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps of each run.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Constant learning rate, without warm-up.")] = 5e-4,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "bf16",
) -> None:
    """Runs both in a temporary folder, and writes figures and curves."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        params = write_params(folder, steps, batch_size, learning_rate, precision)
        ours: dict[str, Any] = {"stages": {}}
        for stage in ("fetch base", "fetch dataset", "encode images", "encode captions", "train"):
            ours["stages"][stage] = measured(["-m", *f"stages.{stage}".split()], folder)._asdict()
        theirs = {"train": measured(script_and_options(script.resolve(), folder, params), folder)._asdict()}
        curves = {
            "train_text_to_image.py": _losses(folder / "theirs/logs", "train_loss"),
            "t2i": _losses(folder / "data/trackers", "loss"),
        }
    rates = {name: _samples_per_second(events, batch_size) for name, events in curves.items()}
    figures = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "precision": precision,
        "samples_per_second": rates,
        "ratio": round(rates["t2i"] / rates["train_text_to_image.py"], 2),
        "last_fifth_loss": {
            name: round(float(np.mean([e.value for e in events[-steps // 5 :]])), 4) for name, events in curves.items()
        },
        "t2i": ours,
        "train_text_to_image.py": theirs,
    }
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    _draw(curves, rates, Path(__file__).with_suffix(".png"))
    print(json.dumps(figures, indent=2))


def write_params(
    folder: Path, steps: int, batch_size: int, learning_rate: float, precision: str, trackers: Sequence[str] = ("tensorboard",)
) -> dict[str, Any]:
    """Writes and returns the default parameters, limited to what the script can do too."""
    params: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["base"] |= {"local": str(ROOT / "base/openmoji"), "clip": str(ROOT / "base/openmoji/clip")}
    params["fetch"]["local"] = str(ROOT / "data/local")
    params["train"] |= {"trainable": "", "steps": steps, "batch_size": batch_size, "precision": precision, "warmup_steps": 0}
    params["train"] |= {"learning_rate": learning_rate, "schedule": {"name": "constant"}, "prompt_dropout": 0.0}
    params["train"]["ema"]["every_steps"] = 1
    params["train"]["objective"]["weighting"] = {"name": "uniform"}  # as the script without --snr_gamma
    params["runtime"] |= {"trackers": list(trackers), "log_every_steps": 1 if trackers else 20}
    params["runtime"]["validation"]["every_steps"] = 10 * steps
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)
    return params


def script_and_options(script: Path, folder: Path, params: dict[str, Any]) -> list[str]:
    """Returns the script and its options; writes the same images to a folder with metadata.jsonl. Validation is off."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in (folder / "data/raw/captions.jsonl").open(encoding="utf-8")]
    captions = {row["key"]: row["captions"][0] for row in rows if row["split"] == "train"}
    lines = []
    for shard in sorted((folder / "data/raw/images").glob("train-*.tar")):
        with tarfile.open(fileobj=io.BytesIO(shard.read_bytes())) as tar:
            tar.extractall(images, filter="data")
            lines += [
                json.dumps({"file_name": name, "text": captions[name.partition(".")[0]]}) for name in sorted(tar.getnames())
            ]
    (images / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    train = params["train"]
    options = {
        "pretrained_model_name_or_path": folder / "data/base",
        "train_data_dir": images,
        "resolution": params["encode"]["images"]["resolution_px"],
        "train_batch_size": train["batch_size"],
        "max_train_steps": train["steps"],
        "learning_rate": train["learning_rate"],
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_grad_norm": train["max_grad_norm"],
        "mixed_precision": {"fp32": "no"}.get(train["precision"], train["precision"]),
        "seed": train["seed"],
        "checkpointing_steps": 10 * train["steps"],
        "report_to": "tensorboard",
        "output_dir": folder / "theirs",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [str(script), *words, "--use_ema", "--center_crop"]


def _losses(folder: Path, name: str) -> list[ScalarEvent]:
    """Returns the loss of a run at each step, with the time at which it was written."""
    for events in sorted(folder.rglob("events.*")):
        accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0}).Reload()
        if name in accumulator.Tags()["scalars"]:
            found: list[ScalarEvent] = accumulator.Scalars(name)
            return found
    sys.exit(f"{folder}: no event file has the scalar {name!r}")


def _samples_per_second(events: list[ScalarEvent], batch_size: int) -> float:
    steady = events[len(events) // 20 :]
    return round(batch_size * (len(steady) - 1) / (steady[-1].wall_time - steady[0].wall_time), 1)


def _draw(curves: dict[str, list[ScalarEvent]], rates: dict[str, float], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, events in curves.items():
        losses = np.array([event.value for event in events])
        width = max(1, len(losses) // 15)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(np.arange(width, len(losses) + 1), smooth, label=f"{name}: {rates[name]:.0f} samples/s")
    axes.set(xlabel="step", ylabel="loss, smoothed")
    axes.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    typer.run(main)
