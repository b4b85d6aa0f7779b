"""Caches: moments and embeddings that are whole, and were made of the base, the dataset and the parameters that are here now.

DVC sees to that where it runs the stages; this is for who runs one by hand, moves a cache, or has a disk that forgets.
"""

import json
from pathlib import Path
from typing import Any

from t2i.manifest import check_hashes, check_made_by
from t2i.params import read
from t2i.work import digest_of

DTYPE = "float16"
"""What floating tensors are stored in."""


def text_digests(base: Path) -> dict[str, str]:
    """Returns a digest of each folder of a pipeline that its captions go through: tokenizers and text encoders."""
    return {folder.name: digest_of(folder) for folder in sorted(base.glob("t*")) if folder.is_dir()}


def check_caches(latents: Path, embeds: Path, dataset: Path, params: Path, *, base: Path | None, hashes: bool) -> None:
    """Refuses caches that are damaged, or stale.

    Args:
        latents: moments.
        embeds: embeddings.
        dataset: dataset.json, which has the digests of the images and the captions.
        params: params.yaml; of the section `encode`, what decides the caches is compared.
        base: the pipeline that should have encoded them; None: not compared.
        hashes: whether every byte is read, or sizes alone are compared.

    Raises:
        ValueError: naming the file and both values.
    """
    described, stated = json.loads(dataset.read_text(encoding="utf-8")), read(params).get("encode", {})
    if missing := {"images", "captions"} - described.keys():
        raise ValueError(f"{dataset}: no digest of the {' and '.join(sorted(missing))}; run `fetch dataset` again")
    of_latents: dict[str, Any] = {"dtype": DTYPE, "images": described["images"], "params": stated.get("images")}
    of_embeds: dict[str, Any] = {"dtype": DTYPE, "captions": described["captions"], "params": stated.get("captions")}
    if base is not None:
        of_latents["vae"], of_embeds["text"] = digest_of(base / "vae"), text_digests(base)
    for folder, wanted in ((latents, of_latents), (embeds, of_embeds)):
        check_made_by(folder, wanted)
        if hashes:
            check_hashes(folder)
