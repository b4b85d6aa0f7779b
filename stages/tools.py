"""The console script `t2i`: every command in one place, and those that are no stage of the pipeline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages import encode, evaluate, fetch, train
from stages.console import ParamsFile, application, run

if TYPE_CHECKING:
    from t2i.model.family import Family

app = application("Fine-tune Stable Diffusion on your own captioned images. `dvc repro` runs the stages in their order.")
app.add_typer(fetch.app, name="fetch")
app.add_typer(encode.app, name="encode")
app.command("train")(train.main)
app.add_typer(evaluate.app, name="evaluate")


@app.command()
def sample(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to draw, a prompt each in quotes.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="Prompts from a file, a line each.")] = None,
    model: Annotated[Path, typer.Option(help="The fine-tuned pipeline.")] = Path("data/model"),
    base_model: Annotated[Path, typer.Option(help="The base.")] = Path("data/base"),
    base: Annotated[bool, typer.Option("--base", help="Draw with the base.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw with the base and the fine-tuned model, side by side.")
    ] = False,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    seed: Annotated[int, typer.Option(help="Of the first image of a prompt; the next has the next.")] = 0,
    num: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 4,
    guidance_scale: Annotated[float | None, typer.Option(min=1, help="None given: `evaluate.guidance_scale`.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="None given: `evaluate.num_inference_steps`.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the images and grid.png.")] = Path("samples"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Draws prompts; every PNG says in its metadata which prompt, seed and model made it."""
    wanted = [*(prompts or []), *(_lines(prompts_file) if prompts_file else [])]
    if not wanted or (base and compare):
        raise typer.BadParameter('give a prompt (t2i sample "red heart") or --prompts-file, and one of --base and --compare')
    from t2i.core.params import load
    from t2i.encode.views import EncodeImages
    from t2i.evaluate.heldout import Drawing, Evaluate
    from t2i.model.runtime import Runtime
    from t2i.tools.sample import sample

    section, runtime = load(params, "evaluate", Evaluate), load(params, "runtime", Runtime)
    how = Drawing(
        num_inference_steps=steps or section.num_inference_steps,
        guidance_scale=guidance_scale or section.guidance_scale,
        size_px=load(params, "encode.images", EncodeImages).resolution_px,
        precision=section.precision,
        batch_size=runtime.encode_batch_size,
        device=runtime.torch_device(),
        negative_prompt=negative_prompt,
    )
    folders = ({"base": base_model} if base or compare else {}) | ({} if base else {"fine-tuned": model})
    files = sample(how, _families(params, folders), wanted, out, seed=seed, num=num)
    print(f"{len(files) - 1} images in {out}, all of them in {files[-1]}")


@app.command()
def preset(
    name: Annotated[str | None, typer.Argument(help="Which.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Say which there are, and what for.")] = False,
    presets: Annotated[Path, typer.Option(help="Folder of the presets.")] = Path("presets"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Changes params.yaml to what a preset says; `git checkout params.yaml` takes it back."""
    from t2i.tools.preset import presets as known_presets
    from t2i.tools.preset import write_preset

    if (name is None) != list_them:
        raise typer.BadParameter("name a preset, or --list them")
    if name is None:
        lines = [f"{known}: {use}" for known, use in known_presets(presets).items()]
    else:
        lines = write_preset(name, presets, params)
    print("\n".join(lines))


@app.command()
def plan(
    base: Annotated[Path, typer.Option(help="The pipeline, from `fetch base`.")] = Path("data/base"),
    raw: Annotated[Path, typer.Option(help="Images and captions, from `fetch dataset`.")] = Path("data/raw"),
    records: Annotated[int | None, typer.Option(min=2, help="Plan for so many records instead, fetched or not.")] = None,
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Says what a run will take, before anything is encoded: bytes, memory, steps, and times from some seconds of probing."""
    from t2i.tools.plan import plan

    for name, said in plan(params, base, raw, records):
        print(f"{name:22} {said}")


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte of the caches, and decode some records back.")] = False,
    data: Annotated[Path, typer.Option(help="Folder of what the stages write.")] = Path("data"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Looks at checkout, parameters, device, base, caches and disk before a long run; exit code 1 where something is wrong."""
    from t2i.tools.doctor import doctor

    wrong = 0
    for finding in doctor(params, data, deep=deep):
        print(f"{finding.state:5}  {finding.about}: {finding.said}", flush=True)
        wrong += finding.state == "wrong"
    if wrong:
        raise ValueError(f"{wrong} of these would stop a run, or spoil it")
    print("nothing stands in the way of a run")


def _families(params: Path, folders: dict[str, Path]) -> "dict[str, tuple[Family, Path]]":
    from t2i.core.params import load
    from t2i.model.family import Base, load_family

    name = load(params, "base", Base).family
    for folder in folders.values():
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder}: no pipeline is here; run `dvc repro`, or name another folder")
    return {its_name: (load_family(name, folder), folder) for its_name, folder in folders.items()}


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def main() -> None:
    """Runs the console script."""
    run(app)


if __name__ == "__main__":
    main()
