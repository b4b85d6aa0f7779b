"""Stages `fetch base` and `fetch dataset`: copy or download the inputs of all other stages."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from stages.console import ParamsFile, application, run, took

app = application("Fetches the base model and the dataset into data/.")


@app.command()
def base(
    out: Annotated[Path, typer.Option(help="Output folder for the base model, in diffusers' layout.")] = Path("data/base"),
    clip_out: Annotated[Path, typer.Option(help="Output folder for the CLIP model used for the metrics.")] = Path(
        "data/base-clip"
    ),
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Copies the base model from a folder, or downloads it from the Hub at a fixed commit. Accepts only safetensors weights."""
    from t2i.core.params import load_section
    from t2i.fetch.base import fetch_base
    from t2i.model.base import Base

    fetched = fetch_base(load_section(params_file, "base", Base), out, clip_out)
    print(f"base fetched in {took()}: {fetched}")


@app.command()
def dataset(
    out: Annotated[Path, typer.Option(help="Output folder for image shards and captions.")] = Path("data/raw"),
    report: Annotated[Path, typer.Option(help="Output folder for the metrics.")] = Path("data/reports/fetch-dataset"),
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Copies the images and captions of a source into shards, split by hash into training and held-out records."""
    from t2i.core.files import write_json
    from t2i.core.params import load_section
    from t2i.fetch.dataset import Fetch, fetch_dataset
    from t2i.model.runtime import Runtime

    section, runtime = load_section(params_file, "fetch", Fetch), load_section(params_file, "runtime", Runtime)
    print(f"fetching the dataset from source {section.source.name}", file=sys.stderr)
    fetched = fetch_dataset(section, out, runtime.storage())
    write_json(report / "metrics.json", fetched.metrics())
    kept = " and ".join(f"{count} {split}" for split, count in fetched.kept.items())
    print(f"dataset fetched in {took()}: {kept} records of {fetched.found} found")
    if fetched.images_per_epoch != fetched.kept["train"]:
        print(f"with repeats, an epoch of training has {fetched.images_per_epoch} images")
    if left_out := fetched.left_out():
        print(f"left out: {left_out}; listed in {out / 'skipped.csv'}")
    if note := fetched.note():
        print(f"note: {note}")


if __name__ == "__main__":
    run(app)
