"""Caches: moments and embeddings that are whole, and were made of the base, the dataset and the parameters that are here now.

DVC sees to that where it runs the stages; this is for who runs one by hand, moves a cache, or has a disk that forgets.
"""

import json
from pathlib import Path

from t2i.core.params import read_section
from t2i.data.digests import digest_of, sha256_of
from t2i.data.manifest import MANIFEST, check_hashes, check_made_by

DTYPE = "float16"
"""What floating tensors are stored in."""


def text_digests(base: Path) -> dict[str, str]:
    """Returns a digest of each folder of a pipeline that its captions go through: tokenizers and text encoders."""
    return {folder.name: digest_of(folder) for folder in sorted(base.glob("t*")) if folder.is_dir()}


def dataset_digests(raw: Path) -> dict[str, str]:
    """Returns the digests of a dataset's images and captions, which caches are made of."""
    return {"images": sha256_of(raw / "images" / MANIFEST), "captions": sha256_of(raw / "captions.jsonl")}


def stated_digests(dataset: Path) -> dict[str, str]:
    """Returns the same as dataset.json states them."""
    try:
        described = json.loads(dataset.read_text(encoding="utf-8"))
        return {name: described[name] for name in ("images", "captions")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{dataset}: damaged, or of another version ({error!r}); run `fetch dataset` again") from None


def check_data(raw: Path, latents: Path, embeds: Path, params_file: Path, *, base: Path, hashes: bool) -> None:
    """Refuses images or caches that are damaged or stale: `check_caches`, where the dataset is at hand."""
    if hashes:
        check_hashes(raw / "images")
    check_caches(latents, embeds, dataset_digests(raw), params_file, base=base, hashes=hashes)


def check_caches(latents: Path, embeds: Path, dataset: dict[str, str], params_file: Path, *, base: Path, hashes: bool) -> None:
    """Refuses caches that are damaged, or stale.

    Args:
        latents: moments.
        embeds: embeddings.
        dataset: digests of the images and the captions that they should be made of.
        params_file: params.yaml; of the section `encode`, what decides the caches is compared.
        base: the pipeline that should have encoded them.
        hashes: whether every byte is read, or sizes alone are compared.

    Raises:
        ValueError: naming the file and both values.
    """
    of_latents = {
        "images": dataset["images"],
        "params": read_section(params_file, "encode.images"),
        "vae": digest_of(base / "vae"),
    }
    of_embeds = {
        "captions": dataset["captions"],
        "params": read_section(params_file, "encode.captions"),
        "text": text_digests(base),
    }
    for folder, wanted in ((latents, of_latents), (embeds, of_embeds)):
        check_made_by(folder, wanted | {"dtype": DTYPE})
        if hashes:
            check_hashes(folder)
