"""The console script `t2i`: every command in one place, and those that are no stage of the pipeline."""

from pathlib import Path
from typing import Annotated

import typer

from stages import encode, evaluate, fetch, train
from stages.console import ParamsFile, application, run

app = application("Fine-tune Stable Diffusion on your own captioned images. `dvc repro` runs the stages in their order.")
app.add_typer(fetch.app, name="fetch")
app.add_typer(encode.app, name="encode")
app.command("train")(train.main)
app.add_typer(evaluate.app, name="evaluate")


@app.command()
def sample(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to draw, a prompt each in quotes.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="Prompts from a file, a line each.")] = None,
    model: Annotated[Path, typer.Option(help="The pipeline that draws: fine-tuned, or any other.")] = Path("data/model"),
    base: Annotated[Path, typer.Option(help="The pipeline, from `fetch base`.")] = Path("data/base"),
    compare: Annotated[bool, typer.Option("--compare", help="Draw with base and model, side by side.")] = False,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    seed: Annotated[int, typer.Option(help="Of the first image of a prompt; the next has the next.")] = 0,
    num: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 4,
    guidance_scale: Annotated[float | None, typer.Option(min=1, help="None given: `evaluate.guidance_scale`.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="None given: `evaluate.num_inference_steps`.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the images and grid.png.")] = Path("samples"),
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Draws prompts; every PNG says in its metadata which prompt, seed and model made it."""
    if not (wanted := [*(prompts or []), *(_lines(prompts_file) if prompts_file else [])]):
        raise typer.BadParameter('give a prompt (t2i sample "red heart") or --prompts-file')
    from t2i.core.params import load_section
    from t2i.encode.views import EncodeImages
    from t2i.evaluate.section import Evaluate
    from t2i.model.family import open_family
    from t2i.model.runtime import Runtime
    from t2i.model.sampling import Drawing
    from t2i.tools.sample import sample

    section, runtime = load_section(params_file, "evaluate", Evaluate), load_section(params_file, "runtime", Runtime)
    how = Drawing(
        num_inference_steps=steps or section.num_inference_steps,
        guidance_scale=guidance_scale or section.guidance_scale,
        size_px=load_section(params_file, "encode.images", EncodeImages).resolution_px,
        precision=section.precision,
        batch_size=runtime.encode_batch_size,
        device=runtime.torch_device(),
        negative_prompt=negative_prompt,
    )
    folders = ({"base": base} if compare else {}) | {"fine-tuned": model}
    families = {name: open_family(params_file, folder) for name, folder in folders.items()}
    files = sample(how, families, wanted, out, seed=seed, num=num)
    print(f"{len(files) - 1} images in {out}, all of them in {files[-1]}")


@app.command()
def preset(
    name: Annotated[str | None, typer.Argument(help="Which.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Say which there are, and what for.")] = False,
    presets: Annotated[Path, typer.Option(help="Folder of the presets.")] = Path("presets"),
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Changes params.yaml to what a preset says; `git checkout params.yaml` takes it back."""
    from t2i.tools.preset import presets as known_presets
    from t2i.tools.preset import write_preset

    if (name is None) != list_them:
        raise typer.BadParameter("name a preset, or --list them")
    if name is None:
        lines = [f"{known}: {use}" for known, use in known_presets(presets).items()]
    else:
        lines = write_preset(name, presets, params_file)
    print("\n".join(lines))


@app.command()
def plan(
    base: Annotated[Path, typer.Option(help="The pipeline, from `fetch base`.")] = Path("data/base"),
    raw: Annotated[Path, typer.Option(help="Images and captions, from `fetch dataset`.")] = Path("data/raw"),
    records: Annotated[int | None, typer.Option(min=2, help="Plan for so many records instead, fetched or not.")] = None,
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Says what a run will take, before anything is encoded: bytes, memory, steps, and times from some seconds of probing."""
    from t2i.tools.plan import plan

    for name, said in plan(params_file, base, raw, records):
        print(f"{name:22} {said}")


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte of the caches, and decode some records back.")] = False,
    data: Annotated[Path, typer.Option(help="Folder of what the stages write.")] = Path("data"),
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Looks at checkout, parameters, device, base, caches and disk before a long run; exit code 1 where something is wrong."""
    from t2i.tools.doctor import doctor

    wrong = 0
    for finding in doctor(params_file, data, deep=deep):
        print(f"{finding.state:5}  {finding.about}: {finding.said}", flush=True)
        wrong += finding.state == "wrong"
    if wrong:
        raise ValueError(f"{wrong} of these would stop a run, or spoil it")
    print("nothing stands in the way of a run")


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def main() -> None:
    """Runs the console script."""
    run(app)


if __name__ == "__main__":
    main()
