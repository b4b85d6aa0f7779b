"""Stages `evaluate base`, `evaluate model` and `evaluate report`: sample both models, measure them, write a report."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from stages.console import ParamsFile, application, require, run, took

app = application("Samples and measures the base model and the fine-tuned model on held-out prompts, and writes a report.")

FromBase = Annotated[Path, typer.Option("--base", help="The base model, from `fetch base`.")]
Clip = Annotated[Path, typer.Option("--clip", help="The CLIP model used for the metrics, from `fetch base`.")]
Raw = Annotated[Path, typer.Option("--raw", help="Folder of images and captions, from `fetch dataset`.")]
Latents = Annotated[Path, typer.Option("--latents", help="Folder of moments, from `encode images`.")]
Embeds = Annotated[Path, typer.Option("--embeds", help="Folder of embeddings, from `encode captions`.")]
Samples = Annotated[Path, typer.Option("--samples", help="Output folder for the sampled images.")]
DATA = Path("data")


@app.command()
def base(
    base: FromBase = DATA / "base",
    clip: Clip = DATA / "base-clip",
    raw: Raw = DATA / "raw",
    latents: Latents = DATA / "latents",
    embeds: Embeds = DATA / "embeds",
    samples: Samples = DATA / "samples/base",
    report: Annotated[Path, typer.Option(help="Output folder for the metrics.")] = DATA / "reports/evaluate-base",
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Samples and measures the base model. All models fine-tuned from it reuse the result."""
    from t2i.core.params import load_section
    from t2i.data.caches import check_data
    from t2i.evaluate.base import evaluate_base
    from t2i.evaluate.evaluator import Evaluator
    from t2i.evaluate.heldout import DataFolders
    from t2i.evaluate.section import Evaluate
    from t2i.model.family import open_family
    from t2i.model.runtime import Runtime
    from t2i.model.sampling import Sampler

    section, runtime = load_section(params_file, "evaluate", Evaluate), load_section(params_file, "runtime", Runtime)
    sampler = Sampler(partial(open_family, params_file, base, "t2i fetch base"), runtime)
    require(_inputs(raw, latents, embeds) | {clip: "t2i fetch base"})
    data = DataFolders(raw, latents, embeds, runtime.storage())
    check_data(raw, latents, embeds, params_file, base=base, storage=data.storage, hashes=runtime.verify_shards)
    evaluator = Evaluator(section, data, clip, runtime)
    with sampler:
        _print(evaluate_base(evaluator, sampler, samples, report).metrics)


@app.command()
def model(
    base: FromBase = DATA / "base",
    model: Annotated[Path, typer.Option(help="The fine-tuned model, from `train`.")] = DATA / "model",
    clip: Clip = DATA / "base-clip",
    raw: Raw = DATA / "raw",
    latents: Latents = DATA / "latents",
    embeds: Embeds = DATA / "embeds",
    samples: Samples = DATA / "samples/model",
    base_report: Annotated[Path, typer.Option(help="Folder of the base model's metrics, from `evaluate base`.")] = DATA
    / "reports/evaluate-base",
    report: Annotated[Path, typer.Option(help="Output folder for the metrics.")] = DATA / "reports/evaluate",
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Samples and measures the fine-tuned model on the same prompts and seeds as the base model."""
    from t2i.core.params import load_section
    from t2i.data.caches import check_data
    from t2i.evaluate.evaluator import Evaluator
    from t2i.evaluate.heldout import DataFolders
    from t2i.evaluate.model import Sweep, evaluate_model
    from t2i.evaluate.section import Evaluate
    from t2i.model.runtime import Runtime
    from t2i.model.sampling import Sampler
    from t2i.model.tuned import open_tuned

    section, runtime = load_section(params_file, "evaluate", Evaluate), load_section(params_file, "runtime", Runtime)
    sweep = load_section(params_file, "sweep", Sweep)
    sampler = Sampler(partial(open_tuned, params_file, base, model, "t2i train", sweep.adapter_scale), runtime)
    require(_inputs(raw, latents, embeds) | {base: "t2i fetch base", clip: "t2i fetch base"})
    data = DataFolders(raw, latents, embeds, runtime.storage())
    check_data(raw, latents, embeds, params_file, base=base, storage=data.storage, hashes=runtime.verify_shards)
    require({base_report / "metrics.json": "t2i evaluate base"})
    evaluator = Evaluator(section, data, clip, runtime)
    with sampler:
        _print(evaluate_model(sweep, evaluator, sampler, samples, base_report, report).metrics)


@app.command()
def report(
    base: FromBase = DATA / "base",
    model: Annotated[Path, typer.Option(help="The fine-tuned model, from `train`.")] = DATA / "model",
    raw: Raw = DATA / "raw",
    latents: Latents = DATA / "latents",
    embeds: Embeds = DATA / "embeds",
    validation_prompts: Annotated[Path, typer.Option(help="Folder of validation prompts, from `encode captions`.")] = DATA
    / "validation-prompts",
    samples: Annotated[Path, typer.Option(help="Folder of the samples of both models, from `evaluate`.")] = DATA / "samples",
    validation: Annotated[Path, typer.Option(help="Folder of the samples drawn during training, from `train`.")] = DATA
    / "validation",
    reports: Annotated[Path, typer.Option(help="Folder of the metrics of every stage.")] = DATA / "reports",
    pictures: Annotated[Path, typer.Option(help="Output folder for the image grids.")] = DATA / "pictures",
    page: Annotated[Path, typer.Option(help="Output file for the report, an HTML page.")] = DATA / "reports/report.html",
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Writes image grids and a self-contained HTML report about the run."""
    from t2i.core.params import load_section
    from t2i.data.caches import check_data
    from t2i.evaluate.heldout import DataFolders
    from t2i.evaluate.report import Report, StageOutputs, evaluate_report
    from t2i.evaluate.section import Evaluate
    from t2i.model.family import open_family
    from t2i.model.runtime import Runtime
    from t2i.model.tuned import open_tuned

    section, shown = load_section(params_file, "evaluate", Evaluate), load_section(params_file, "report", Report)
    runtime = load_section(params_file, "runtime", Runtime)
    family, tuned = open_family(params_file, base, "t2i fetch base"), open_tuned(params_file, base, model, "t2i train")
    require(_inputs(raw, latents, embeds) | {validation_prompts: "t2i encode captions"})
    data = DataFolders(raw, latents, embeds, runtime.storage())
    check_data(raw, latents, embeds, params_file, base=base, storage=data.storage, hashes=runtime.verify_shards)
    require({validation: "t2i train", reports / "train/metrics.json": "t2i train"})
    require({samples / "base": "t2i evaluate base", samples / "model": "t2i evaluate model"})
    outputs = StageOutputs(data, validation_prompts, samples, reports, validation, model)
    text = params_file.read_text(encoding="utf-8")
    verdict, warnings = evaluate_report(shown, section, family, tuned, outputs, text, pictures, page, runtime.torch_device())
    told = (f"warning: {warning.what} {warning.to_try}" for warning in warnings)
    print("\n".join([verdict.title, *verdict.reasons, *told]))
    print(f"report written to {page} in {took()}; image grid: {pictures / 'grid.png'}")


def _inputs(raw: Path, latents: Path, embeds: Path) -> dict[Path, str]:
    """Returns the commands that write the data that all three stages read."""
    return {raw: "t2i fetch dataset", latents: "t2i encode images", embeds: "t2i encode captions"}


def _print(metrics: dict[str, float | int]) -> None:
    for name, value in metrics.items():
        print(f"  {name:26} {value:g}")
    print(f"sampled and measured in {took()}")


if __name__ == "__main__":
    run(app)
