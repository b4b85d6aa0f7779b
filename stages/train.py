"""Stage `train`: fine-tunes the UNet on cached tensors."""

import os
from pathlib import Path
from typing import Annotated

import typer

from stages.console import ParamsFile, command_line, require, run, took


def main(
    base: Annotated[Path, typer.Option(help="The base model, from `fetch base`.")] = Path("data/base"),
    latents: Annotated[Path, typer.Option(help="Folder of moments, from `encode images`.")] = Path("data/latents"),
    embeds: Annotated[Path, typer.Option(help="Folder of embeddings, from `encode captions`.")] = Path("data/embeds"),
    validation_prompts: Annotated[Path, typer.Option(help="Folder of validation prompts, from `encode captions`.")] = Path(
        "data/validation-prompts"
    ),
    dataset: Annotated[Path, typer.Option(help="For the model card, from `fetch dataset`.")] = Path("data/raw/dataset.json"),
    out: Annotated[Path, typer.Option(help="Output folder for the fine-tuned model.")] = Path("data/model"),
    validation: Annotated[Path, typer.Option(help="Output folder for what validation finds.")] = Path("data/validation"),
    report: Annotated[Path, typer.Option(help="Output folder for the metrics and curves.")] = Path("data/reports/train"),
    trackers: Annotated[Path, typer.Option(help="Output folder for the files of `runtime.trackers`.")] = Path("data/trackers"),
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Fine-tunes the UNet and writes a complete pipeline. After an interruption, run the same command to resume."""
    call = dict(locals())  # only the options: no other local variable exists yet
    from t2i.core.params import load_section
    from t2i.data.caches import check_caches, stated_digests
    from t2i.model.family import open_family
    from t2i.model.launch import in_process_group, relaunch
    from t2i.model.runtime import Runtime
    from t2i.train.engine import check_settings, device_of_messages
    from t2i.train.group import joined
    from t2i.train.loop import Inputs, Outputs, train
    from t2i.train.section import Train

    section, runtime = load_section(params_file, "train", Train), load_section(params_file, "runtime", Runtime)
    check_settings(section, runtime)
    if runtime.processes > 1 and not in_process_group():
        raise SystemExit(relaunch("stages.train", command_line(main, call), runtime.processes))
    with joined(device_of_messages(runtime)) as group:
        family = open_family(params_file, base, "t2i fetch base", section.objective.scheduler_changes())
        of_first = {dataset: "t2i fetch dataset", validation_prompts: "t2i encode captions"} if group.first else {}
        require(of_first | {latents: "t2i encode images", embeds: "t2i encode captions"})
        inputs = Inputs(base, latents, embeds, validation_prompts, dataset, runtime.storage())
        if group.first:
            check_caches(latents, embeds, stated_digests(dataset), params_file, base=base, storage=inputs.storage, hashes=False)
        metrics = train(section, runtime, family, inputs, Outputs(out, validation, report, trackers), group)
    if metrics:
        print(f"{metrics['steps']} steps trained in {took()}; loss {metrics['loss']:.4f}; the model is in {out}")


if __name__ == "__main__":
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch warns with a C++ stack when another process has ended
    app = typer.Typer(pretty_exceptions_show_locals=False, add_completion=False)
    app.command()(main)
    run(app)
