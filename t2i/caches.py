"""Caches: moments and embeddings that are whole, and were made of the base, the dataset and the parameters that are here now.

DVC sees to that where it runs the stages; this is for who runs one by hand, moves a cache, or has a disk that forgets.
"""

import json
from pathlib import Path
from typing import Any

from t2i.manifest import MANIFEST, check_hashes, check_made_by
from t2i.params import read
from t2i.work import digest_of, sha256_of

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
    described = json.loads(dataset.read_text(encoding="utf-8"))
    if missing := {"images", "captions"} - described.keys():
        raise ValueError(f"{dataset}: no digest of the {' and '.join(sorted(missing))}; run `fetch dataset` again")
    return {name: described[name] for name in ("images", "captions")}


def check_caches(
    latents: Path, embeds: Path, dataset: dict[str, str], params: Path, *, base: Path | None, hashes: bool
) -> None:
    """Refuses caches that are damaged, or stale.

    Args:
        latents: moments.
        embeds: embeddings.
        dataset: digests of the images and the captions that they should be made of.
        params: params.yaml; of the section `encode`, what decides the caches is compared.
        base: the pipeline that should have encoded them; None: not compared.
        hashes: whether every byte is read, or sizes alone are compared.

    Raises:
        ValueError: naming the file and both values.
    """
    stated = read(params).get("encode", {})
    of_latents: dict[str, Any] = {"dtype": DTYPE, "images": dataset["images"], "params": stated.get("images")}
    of_embeds: dict[str, Any] = {"dtype": DTYPE, "captions": dataset["captions"], "params": stated.get("captions")}
    if base is not None:
        of_latents["vae"], of_embeds["text"] = digest_of(base / "vae"), text_digests(base)
    for folder, wanted in ((latents, of_latents), (embeds, of_embeds)):
        check_made_by(folder, wanted)
        if hashes:
            check_hashes(folder)
