"""The cost of a training step: this pipeline, a plain loop, and train_text_to_image.py where its path is given.

python -m benchmarks.train [PATH/TO/diffusers/examples/text_to_image/train_text_to_image.py]

All train every weight of the embedded base on the same images, with the same batch, rate and precision and an EMA at every
step. The plain loop is what such a script does at a step and nothing else: read the images, run the VAE, the text encoder, the
UNet and the optimizer. Every run is a process of its own; its core seconds are read after some steps and after the last one, so
that start-up and shutdown do not count. The sides take turns. The script needs torchvision and TensorBoard.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.against_diffusers import script_and_options, write_params
from benchmarks.busy import processor
from benchmarks.measured import measured, measured_steps


def main(
    script: Annotated[
        Path | None, typer.Argument(help="Path of train_text_to_image.py in a checkout of huggingface/diffusers.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of a run.")] = 60,
    few: Annotated[int, typer.Option(help="Steps before the first reading.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 16,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    rounds: Annotated[int, typer.Option(min=1, help="How often every side runs.")] = 3,
    out: Annotated[Path | None, typer.Option(help="File for the figures, as JSON.")] = None,
) -> None:
    """Measures every side in turn."""
    os.environ["T2I_RESUME"] = "never"
    costs: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, batch_size, precision)
        for _ in range(rounds):
            for side, words in sides(folder, script, steps, batch_size, precision).items():
                cost, run = measured_steps(words, folder, few, steps)
                costs.setdefault(side, []).append(cost)
                peaks.setdefault(side, []).append(run.peak_gib)
    figures = {
        side: {
            "core_seconds_per_step": round(statistics.median(values), 4),
            "peak_gib": round(statistics.median(peaks[side]), 3),
        }
        for side, values in costs.items()
    }
    for side, row in figures.items():
        print(f"{side:25}" + "  ".join(f"{name} {value:g}" for name, value in row.items()))
    if out:
        made_with = {
            "processor": processor(),
            "python": platform.python_version(),
            "batch_size": batch_size,
            "precision": precision,
        }
        out.write_text(json.dumps({"sides": figures, "rounds": costs, **made_with}, indent=2) + "\n", encoding="utf-8")
    other = "script" if script else "plain loop"
    ratios = [theirs / ours for ours, theirs in zip(costs["t2i"], costs[other], strict=True)]
    print(f"peak memory {figures['t2i']['peak_gib'] / figures[other]['peak_gib']:.2f}x")
    print(f"ratios {' '.join(f'{ratio:.2f}' for ratio in ratios)}\nratio {statistics.median(ratios):.2f}x")


def prepare(folder: Path, batch_size: int, precision: str) -> None:
    """Fetches and encodes the default images; writes them once more as a folder with metadata.jsonl."""
    params = write_params(folder, 1, batch_size, 5e-4, precision)
    for stage in ("fetch base", "fetch dataset", "encode images", "encode captions"):
        measured(["-m", *f"stages.{stage}".split()], folder)
    script_and_options(Path("none"), folder, params)


def sides(folder: Path, script: Path | None, steps: int, batch_size: int, precision: str) -> dict[str, list[str]]:
    """Returns the arguments of Python for every side."""
    params = write_params(folder, steps, batch_size, 5e-4, precision, trackers=[])
    found = {
        "t2i": ["-m", "stages.train"],
        "plain loop": ["-c", f"from benchmarks.train import plain_loop; plain_loop({steps}, {batch_size}, {precision!r})"],
    }
    return found | ({"script": script_and_options(script.resolve(), folder, params)} if script else {})


def plain_loop(steps: int, batch_size: int, precision: str) -> None:
    """Trains the base in data/base on the images in images/, in the current folder."""
    import torch
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from diffusers.training_utils import EMAModel

    pipeline = StableDiffusionPipeline.from_pretrained("data/base", torch_dtype=torch.float32)
    unet, vae, text_encoder = (
        pipeline.unet.train(),
        pipeline.vae.requires_grad_(False),
        pipeline.text_encoder.requires_grad_(False),
    )
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    optimizer, ema = torch.optim.AdamW(unet.parameters(), lr=5e-4), EMAModel(unet.parameters())
    for step, (pixels, captions) in enumerate(islice(batches(batch_size, size_px=64), steps), 1):
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            tokens = pipeline.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
            states = text_encoder(tokens)[0]
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, states, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        print(f"{step}/{steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)


def batches(batch_size: int, size_px: int) -> Iterator[tuple[Any, list[str]]]:
    """Yields pixels in [-1, 1] and captions, in an endless order."""
    import numpy as np
    import torch
    from PIL import Image

    rows = [json.loads(line) for line in Path("images/metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(len(rows))
        for at in range(0, len(rows) - batch_size + 1, batch_size):
            chosen = [rows[place] for place in order[at : at + batch_size]]
            images = [Image.open(Path("images") / row["file_name"]).convert("RGB").resize((size_px, size_px)) for row in chosen]
            pixels = torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in images]))
            yield pixels.permute(0, 3, 1, 2) / 127.5 - 1, [row["text"] for row in chosen]


if __name__ == "__main__":
    typer.run(main)
