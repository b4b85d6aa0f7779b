"""Stages `encode images` and `encode captions`: run the VAE and the text encoder once and store their outputs."""

from pathlib import Path
from typing import Annotated

import typer

from stages.console import ParamsFile, application, require, run, took

app = application("Encodes images and captions once, before training: images to VAE moments, captions to text embeddings.")


@app.command()
def images(
    base: Annotated[Path, typer.Option(help="The base model, from `fetch base`.")] = Path("data/base"),
    raw: Annotated[Path, typer.Option(help="Folder of image shards, from `fetch dataset`.")] = Path("data/raw/images"),
    out: Annotated[Path, typer.Option(help="Output folder for the moments.")] = Path("data/latents"),
    report: Annotated[Path, typer.Option(help="Output folder for the metrics.")] = Path("data/reports/encode-images"),
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Encodes every image with the VAE and stores the moments: the mean and log-variance of its latents.

    Also decodes some of them, and fails if their PSNR is too low.
    """
    from t2i.core.files import write_json
    from t2i.core.params import load_section
    from t2i.data.manifest import check_hashes
    from t2i.encode.images import encode_images
    from t2i.encode.views import EncodeImages
    from t2i.model.family import open_family
    from t2i.model.runtime import Runtime

    section, runtime = load_section(params_file, "encode.images", EncodeImages), load_section(params_file, "runtime", Runtime)
    family = open_family(params_file, base, "t2i fetch base")
    require({raw: "t2i fetch dataset"})
    if runtime.verify_shards:
        check_hashes(raw)
    metrics = encode_images(
        section,
        family,
        base,
        raw,
        out,
        batch_size=runtime.encode_batch_size,
        processes=runtime.decoding_processes(),
        device=runtime.torch_device(),
    )
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
    params_file: ParamsFile = Path("params.yaml"),
) -> None:
    """Encodes every caption with the text encoder and stores the embeddings."""
    from t2i.core.files import write_json
    from t2i.core.params import load_section
    from t2i.encode.captions import EncodeCaptions, encode_captions
    from t2i.model.family import open_family
    from t2i.model.runtime import Runtime

    section = load_section(params_file, "encode.captions", EncodeCaptions)
    runtime = load_section(params_file, "runtime", Runtime)
    family = open_family(params_file, base, "t2i fetch base")
    require({captions: "t2i fetch dataset"})
    metrics = encode_captions(
        section,
        family,
        base,
        captions,
        out,
        validation_prompts,
        batch_size=runtime.encode_batch_size,
        device=runtime.torch_device(),
    )
    write_json(report / "metrics.json", metrics)
    counts = f"{metrics['captions']} captions of {metrics['records']} records"
    print(f"{counts} encoded in {took()}; {metrics['truncated']} were cut to the tokenizer's maximum length")


if __name__ == "__main__":
    run(app)
