"""Stages `encode images` and `encode captions`: run the VAE and the text encoder once and store their outputs."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages.console import ParamsFile, application, require, run, took

if TYPE_CHECKING:
    from t2i.encode.job import Open

app = application("Encodes images and captions once, before training: images to VAE moments, captions to text embeddings.")


PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="k/n|env",
        help="Encode only every n-th shard, from the k-th on, counted from 1. All parts may run at once on a shared folder; "
        "then comes --finish. env: the part that torchrun or SLURM has given this process.",
    ),
]
Finish = Annotated[bool, typer.Option("--finish", help="Encode nothing: check that all parts are done, and complete the set.")]


@app.command()
def images(
    base: Annotated[Path, typer.Option(help="The base model, from `fetch base`.")] = Path("data/base"),
    raw: Annotated[Path, typer.Option(help="Folder of image shards, from `fetch dataset`.")] = Path("data/raw/images"),
    out: Annotated[Path, typer.Option(help="Output folder for the moments.")] = Path("data/latents"),
    report: Annotated[Path, typer.Option(help="Output folder for the metrics.")] = Path("data/reports/encode-images"),
    part: PartOption = None,
    finish: Finish = False,
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Encodes every image with the VAE and stores the moments: the mean and log-variance of its latents.

    Also decodes some of them, and fails if their PSNR is too low.
    """
    from t2i.core.files import write_json
    from t2i.core.params import load_section
    from t2i.encode.images import open_images
    from t2i.encode.job import encode_set
    from t2i.encode.views import EncodeImages
    from t2i.model.family import open_family
    from t2i.model.runtime import Runtime

    load_section(params_file, "encode.images", EncodeImages)
    runtime = load_section(params_file, "runtime", Runtime)
    open_family(params_file, base, "t2i fetch base")
    require({raw: "t2i fetch dataset"})
    opened = partial(open_images, params_file, base, raw)
    if part is not None:
        _encode_part(opened, part, finish, "images")
        return
    metrics = encode_set(opened, out, runtime, finished=finish)
    write_json(report / "metrics.json", metrics)
    psnr = f"PSNR after decoding: mean {metrics['psnr_mean']:.1f} dB, lowest {metrics['psnr_min']:.1f} dB"
    print(f"{metrics['records']} images encoded in {took()}; {psnr}")


@app.command()
def captions(
    base: Annotated[Path, typer.Option(help="The base model, from `fetch base`.")] = Path("data/base"),
    captions: Annotated[Path, typer.Option(help="File of captions, from `fetch dataset`.")] = Path("data/raw/captions.jsonl"),
    out: Annotated[Path, typer.Option(help="Output folder for the embeddings.")] = Path("data/embeds"),
    validation_prompts: Annotated[
        Path, typer.Option(help="Output folder for the embeddings of the prompts that are sampled during training.")
    ] = Path("data/validation-prompts"),
    report: Annotated[Path, typer.Option(help="Output folder for the metrics.")] = Path("data/reports/encode-captions"),
    part: PartOption = None,
    finish: Finish = False,
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Encodes every caption with the text encoder and stores the embeddings."""
    from t2i.core.files import write_json
    from t2i.core.params import load_section
    from t2i.encode.captions import EncodeCaptions, open_captions
    from t2i.encode.job import encode_set
    from t2i.model.family import open_family
    from t2i.model.runtime import Runtime

    load_section(params_file, "encode.captions", EncodeCaptions)
    runtime = load_section(params_file, "runtime", Runtime)
    open_family(params_file, base, "t2i fetch base")
    require({captions: "t2i fetch dataset"})
    opened = partial(open_captions, params_file, base, captions, validation_prompts)
    if part is not None:
        _encode_part(opened, part, finish, "captions")
        return
    metrics = encode_set(opened, out, runtime, finished=finish)
    write_json(report / "metrics.json", metrics)
    counts = f"{metrics['captions']} captions of {metrics['records']} records"
    print(f"{counts} encoded in {took()}; {metrics['truncated']} were cut to the tokenizer's maximum length")


def _encode_part(opened: "Open", part: str, finish: bool, what: str) -> None:
    """Encodes a part, and says what comes next."""
    from t2i.encode.job import encode_part
    from t2i.encode.part import part_of

    if finish or "DVC_STAGE" in os.environ:
        raise ValueError("--part is for a process that encodes a part only: not with --finish, and not in dvc.yaml")
    own = part_of(part)
    count = encode_part(opened, own)
    print(f"{own}: {count} records encoded in {took()}; after all parts: `t2i encode {what} --finish`, or `dvc repro`")


if __name__ == "__main__":
    run(app)
