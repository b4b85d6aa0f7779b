"""Stages `evaluate base` and `evaluate model`: sample, measure, draw."""

from pathlib import Path
from typing import Annotated

import typer

from stages.console import ParamsFile, application, run

app = application("Measure the base, and a fine-tuned model beside it, on held-out prompts.")

Clip = Annotated[Path, typer.Option("--clip", help="The CLIP that measures, from `fetch base`.")]
Raw = Annotated[Path, typer.Option("--raw", help="Images and captions, from `fetch dataset`.")]
Latents = Annotated[Path, typer.Option("--latents", help="Moments, from `encode images`.")]
Embeds = Annotated[Path, typer.Option("--embeds", help="Embeddings, from `encode captions`.")]
DATA = Path("data")


@app.command()
def base(
    base: Annotated[Path, typer.Option(help="The pipeline, from `fetch base`.")] = DATA / "base",
    clip: Clip = DATA / "base-clip",
    raw: Raw = DATA / "raw",
    latents: Latents = DATA / "latents",
    embeds: Embeds = DATA / "embeds",
    samples: Annotated[Path, typer.Option(help="Folder for the images drawn.")] = DATA / "samples/base",
    report: Annotated[Path, typer.Option(help="Metrics file.")] = DATA / "reports/evaluate-base/metrics.json",
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Samples and measures the base, once for all the models that are fine-tuned from it."""
    from t2i.evaluate_base import evaluate_base
    from t2i.family import Base, load_family
    from t2i.params import load
    from t2i.runtime import Runtime
    from t2i.sampling import Evaluate, Inputs

    section, runtime = load(params, "evaluate", Evaluate), load(params, "runtime", Runtime)
    family = load_family(load(params, "base", Base).family, base)
    inputs = Inputs(clip, raw, latents, embeds)
    metrics = evaluate_base(
        section, family, inputs, samples, report, batch_size=runtime.encode_batch_size, device=runtime.torch_device()
    )
    _print(metrics)


@app.command()
def model(
    model: Annotated[Path, typer.Option(help="The fine-tuned pipeline, from `train`.")] = DATA / "model",
    clip: Clip = DATA / "base-clip",
    raw: Raw = DATA / "raw",
    latents: Latents = DATA / "latents",
    embeds: Embeds = DATA / "embeds",
    samples: Annotated[Path, typer.Option(help="Folder for the images drawn.")] = DATA / "samples/model",
    base_samples: Annotated[Path, typer.Option(help="What `evaluate base` drew.")] = DATA / "samples/base",
    base_report: Annotated[Path, typer.Option(help="What `evaluate base` measured.")] = DATA
    / "reports/evaluate-base/metrics.json",
    grid: Annotated[Path, typer.Option(help="Folder for the picture of base, fine-tuned and real.")] = DATA / "grid",
    report: Annotated[Path, typer.Option(help="Metrics file.")] = DATA / "reports/evaluate/metrics.json",
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Samples and measures the fine-tuned model on the same prompts and seeds, the base's figures beside it."""
    from t2i.evaluate_model import evaluate_model
    from t2i.family import Base, load_family
    from t2i.params import load
    from t2i.runtime import Runtime
    from t2i.sampling import Evaluate, Inputs

    section, runtime = load(params, "evaluate", Evaluate), load(params, "runtime", Runtime)
    family = load_family(load(params, "base", Base).family, model)
    metrics = evaluate_model(
        section,
        family,
        Inputs(clip, raw, latents, embeds),
        samples,
        base_samples,
        base_report,
        grid,
        report,
        batch_size=runtime.encode_batch_size,
        device=runtime.torch_device(),
    )
    _print(metrics)
    print(f"side by side: {grid / 'grid.png'}")


def _print(metrics: dict[str, float | int]) -> None:
    for name, value in metrics.items():
        print(f"  {name:24} {value:g}")


if __name__ == "__main__":
    run(app)
