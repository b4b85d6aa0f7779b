"""The console script `t2i`: the stages as subcommands, and the commands that are not stages of the pipeline."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from stages import encode, evaluate, fetch, train
from stages.console import ParamsFile, application, run

app = application(
    "Fine-tunes Stable Diffusion on your own captioned images. `dvc repro` runs the stages that are out of date, in the order "
    "fetch, encode, train, evaluate. Their parameters are in params.yaml; `t2i doctor` checks them before a run."
)
app.add_typer(fetch.app, name="fetch")
app.add_typer(encode.app, name="encode")
app.command("train")(train.main)
app.add_typer(evaluate.app, name="evaluate")


@app.command()
def sample(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to draw, each in quotes.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="Text file with one prompt per line.")] = None,
    model: Annotated[Path, typer.Option(help="The model: any diffusers pipeline, or an adapter.")] = Path("data/model"),
    base: Annotated[Path, typer.Option(help="The base, for --compare and for adapters.")] = Path("data/base"),
    scale: Annotated[
        float | None, typer.Option(min=0, help="Strength of an adapter. Default: `sweep.adapter_scale` of the parameter file.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also draw with the base model, side by side.")] = False,
    negative_prompt: Annotated[
        str, typer.Option(help="What the images should not show. Has no effect at a guidance scale of 1.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the first image of each prompt; the next image uses seed + 1.")] = 0,
    num: Annotated[int, typer.Option(min=1, help="Number of images per prompt.")] = 4,
    guidance_scale: Annotated[
        float | None,
        typer.Option(min=1, help="Classifier-free guidance. Default: `evaluate.guidance_scale` of the parameter file."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps. Default: `evaluate.num_inference_steps` of the parameter file.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder for the images and grid.png.")] = Path("samples"),
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Draws images from prompts. The metadata of each PNG holds its prompt, seed, settings and the hash of the model."""
    from t2i.core.params import load_section
    from t2i.data.records import readable
    from t2i.model.family import open_family
    from t2i.model.runtime import Runtime
    from t2i.tools.sample import Model, drawing, read_prompts, sample, tuned_model

    wanted = [readable(prompt, "prompt") if prompt else "" for prompt in prompts or []]  # "" draws without a prompt
    if not (wanted := [*wanted, *(read_prompts(prompts_file) if prompts_file else [])]):
        raise typer.BadParameter('give a prompt (t2i sample "red heart") or --prompts-file')
    how = drawing(params_file, num_inference_steps=steps, guidance_scale=guidance_scale, negative_prompt=negative_prompt)
    models = {"base": Model(base, partial(open_family, params_file, base, "t2i fetch base"), {})} if compare else {}
    models["fine-tuned"] = tuned_model(params_file, base, model, scale)
    files = sample(how, load_section(params_file, "runtime", Runtime), models, wanted, out, seed=seed, num=num)
    print(f"{len(files) - 1} images written to {out}; all in one picture: {files[-1]}")


@app.command()
def export(
    single_file: Annotated[Path | None, typer.Option(help="Write one .safetensors file, which ComfyUI and A1111 read.")] = None,
    diffusers: Annotated[Path | None, typer.Option(help="Write a folder in diffusers' layout.")] = None,
    model: Annotated[Path, typer.Option(help="Model to export: a pipeline, or an adapter.")] = Path("data/model"),
    base: Annotated[Path, typer.Option(help="The base that an adapter is merged into.")] = Path("data/base"),
    scale: Annotated[float | None, typer.Option(min=0, help="Strength of the adapter. Default: 1, as trained.")] = None,
    dtype: Annotated[Literal["fp16", "bf16", "fp32"], typer.Option(help="Precision of the weights.")] = "fp16",
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Writes a model for other programs, as a single file or as a folder; an adapter is merged into its base."""
    from t2i.core.files import in_bytes, size_of
    from t2i.tools.export import export_folder, export_single_file, exported

    if (single_file is None) == (diffusers is None):
        raise typer.BadParameter("give --single-file FILE.safetensors or --diffusers FOLDER")
    what = exported(model, base, scale)
    if single_file:
        written = export_single_file(what, single_file, dtype, force=force)
        size = in_bytes(single_file.stat().st_size)
        print(f"{single_file}: {written.layout.title} in {dtype}, {written.tensors} tensors, {size}")
        for note in written.notes:
            print(f"note: {note}")
    elif diffusers:
        export_folder(what, diffusers, dtype, force=force)
        print(f"{diffusers}: a pipeline in {dtype}, {in_bytes(size_of(diffusers))}")


@app.command()
def preset(
    name: Annotated[str | None, typer.Argument(help="Name of the preset.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List all presets with their purpose.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Put back the values that presets replaced; your edits stay.")] = False,
    presets: Annotated[Path, typer.Option(help="Folder of preset files.")] = Path("presets"),
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Applies a preset to params.yaml, or undoes it."""
    from t2i.tools.preset import presets as known_presets
    from t2i.tools.preset import undo_preset, write_preset

    if (name is not None) + list_them + undo != 1:
        raise typer.BadParameter("give the name of a preset, or --list to see all, or --undo")
    if undo:
        lines = undo_preset(presets, params_file)
    elif name is None:
        lines = [f"{known}: {use}" for known, use in known_presets(presets).items()]
    else:
        lines = write_preset(name, presets, params_file)
    print("\n".join(lines))


@app.command()
def plan(
    base: Annotated[Path, typer.Option(help="The base model, from `fetch base`.")] = Path("data/base"),
    raw: Annotated[Path, typer.Option(help="Folder of images and captions, from `fetch dataset`.")] = Path("data/raw"),
    records: Annotated[
        int | None, typer.Option(min=2, help="Plan for this number of records. The dataset does not have to be fetched.")
    ] = None,
    captions: Annotated[int | None, typer.Option(min=1, help="Captions of each record, with --records. Default: 1.")] = None,
    parts: Annotated[int | None, typer.Option(min=1, help="Also show what one of this number of parts encodes.")] = None,
    base_size: Annotated[
        Literal["sd15", "sd21", "sdxl"] | None,
        typer.Option(
            help="Only show what this base needs on GPUs of each size, or with --records, what this number of records takes. "
            "Nothing has to be fetched."
        ),
    ] = None,
    resolution_px: Annotated[
        int | None, typer.Option(min=8, help="Side of the images, with --base-size and --records. Default: 512; sdxl: 1024.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="TFLOP/s that a GPU reaches, with --base-size and --records. Default: 100.")
    ] = None,
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Estimates what a run needs before you start it: disk space, memory, steps, and time, from short measurements."""
    if (captions and not records) or ((resolution_px or tflops) and not (records and base_size)):
        raise typer.BadParameter("--captions needs --records; --resolution-px and --tflops need --records and --base-size")
    if base_size and records:
        from t2i.tools.forecast import forecast

        lines = forecast(base_size, records, resolution_px, captions=captions or 1, parts=parts, tflops=tflops or 100.0)
    elif base_size:
        from t2i.tools.cards import table

        print("\n".join(table(base_size)))
        return
    else:
        from t2i.tools.plan import plan

        lines = plan(params_file, base, raw, records, captions or 1, parts)
    print("\n".join(f"{name:22} {estimate}" for name, estimate in lines))


@app.command()
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also verify every byte of weights, caches and checkpoints, and decode some records.")
    ] = False,
    data: Annotated[Path, typer.Option(help="Folder that the stages write to.")] = Path("data"),
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Checks project, parameters, device, base model, caches and disk before a long run. Exits with 1 on a problem."""
    from t2i.tools.doctor import doctor

    wrong = 0
    for finding in doctor(params_file, data, deep=deep):
        print(f"{finding.state:5}  {finding.about}: {finding.message}", flush=True)
        wrong += finding.state == "wrong"
    if wrong:
        raise ValueError(f"{wrong} problem(s) found: fix the lines marked `wrong` before you start a run")
    print("no problem found")


@app.command()
def publish(
    to: Annotated[Path | None, typer.Option(help="Folder to write; it must be new, or written by this command.")] = None,
    hub: Annotated[
        str | None, typer.Option(help="Model repository on the Hugging Face Hub, owner/name. The token is read from HF_TOKEN.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one; with --hub.")] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="Licence of the model, as the Hub names it: cc-by-4.0. Default: that of base and dataset, if they share one.",
        ),
    ] = None,
) -> None:
    """Writes the finished run's model, model card, pictures, figures and digests to a folder, or uploads them to the Hub."""
    from t2i.tools.publish import publish_to_folder, publish_to_hub

    if (to is None) == (hub is None):
        raise typer.BadParameter("give --to FOLDER, or --hub owner/name to upload")
    if private and hub is None:
        raise typer.BadParameter("--private needs --hub")
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise typer.BadParameter(f"--license {licence!r}, wanted an identifier of the Hub, such as cc-by-sa-4.0")
    where = publish_to_folder(to, licence) if to else publish_to_hub(str(hub), licence, private=private)
    print(f"published to {where}")


def main() -> None:
    """Runs the console script."""
    run(app)


if __name__ == "__main__":
    main()
