"""Stage `train`: the UNet from cached tensors."""

from pathlib import Path
from typing import Annotated

import typer

from stages.console import ParamsFile, run


def main(
    base: Annotated[Path, typer.Option(help="The pipeline, from `fetch base`.")] = Path("data/base"),
    latents: Annotated[Path, typer.Option(help="Moments, from `encode images`.")] = Path("data/latents"),
    embeds: Annotated[Path, typer.Option(help="Embeddings, from `encode captions`.")] = Path("data/embeds"),
    validation_prompts: Annotated[Path, typer.Option(help="What is drawn on the way, from `encode captions`.")] = Path(
        "data/validation-prompts"
    ),
    dataset: Annotated[Path, typer.Option(help="Description of the dataset, for the model card.")] = Path(
        "data/raw/dataset.json"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the fine-tuned pipeline.")] = Path("data/model"),
    validation: Annotated[Path, typer.Option(help="Folder for what is drawn on the way, as latents.")] = Path(
        "data/validation"
    ),
    report: Annotated[Path, typer.Option(help="Folder for metrics.json, history.csv and validation.csv.")] = Path(
        "data/reports/train"
    ),
    trackers: Annotated[Path, typer.Option(help="Folder for what `runtime.trackers` write.")] = Path("data/trackers"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Fine-tunes the UNet and writes a complete pipeline; interrupted, the same command goes on where it stopped."""
    from t2i.core.params import load
    from t2i.data.caches import check_caches, stated_digests
    from t2i.model.family import Base, load_family
    from t2i.model.launch import in_process_group, is_first_process, relaunch
    from t2i.model.runtime import Runtime
    from t2i.train.loop import Inputs, Outputs, Train, train

    section, runtime, kind = load(params, "train", Train), load(params, "runtime", Runtime), load(params, "base", Base).family
    if runtime.processes > 1 and not in_process_group():
        options = {"base": base, "latents": latents, "embeds": embeds, "dataset": dataset, "out": out, "params": params}
        options |= {"validation-prompts": validation_prompts, "validation": validation, "report": report, "trackers": trackers}
        raise SystemExit(relaunch("stages.train", options, runtime.processes))
    if is_first_process():
        check_caches(latents, embeds, stated_digests(dataset), params, base=base, hashes=runtime.verify_shards)
    family = load_family(kind, base, section.objective.scheduler_changes())
    inputs, outputs = Inputs(base, latents, embeds, validation_prompts, dataset), Outputs(out, validation, report, trackers)
    metrics = train(section, runtime, family, inputs, outputs)
    if metrics:
        print(f"{metrics['steps']} steps; loss {metrics['loss']:.4f}, unweighted {metrics['mse']:.4f}; the model is in {out}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_show_locals=False, add_completion=False)
    app.command()(main)
    run(app)
