"""Caches: checks that moments and embeddings are complete, and were made from the current base, dataset and parameters.

When DVC runs the stages, it ensures this. The checks are for stages run by hand, caches that were moved, and faulty disks.
"""

import json
from pathlib import Path

from t2i.core.params import read_section
from t2i.data.digests import digest_of, sha256_of
from t2i.data.manifest import check_hashes, check_made_by
from t2i.data.storage import MANIFEST, Storage

DTYPE = "float16"
"""The type of the floating-point tensors on disk."""
ZEROS_FOR_EMPTY_PROMPT = "force_zeros_for_empty_prompt"
"""The entry of model_index.json that says whether zeros stand for the empty prompt, instead of its encoding."""


def text_digests(base: Path) -> dict[str, str]:
    """Returns what decides the embeddings of a pipeline: the digests of tokenizers and text encoders, and its empty prompt."""
    digests = {folder.name: digest_of(folder) for folder in sorted(base.glob("t*")) if folder.is_dir()}
    zeros = json.loads((base / "model_index.json").read_text(encoding="utf-8")).get(ZEROS_FOR_EMPTY_PROMPT)
    return digests if zeros is None else digests | {ZEROS_FOR_EMPTY_PROMPT: str(zeros)}


def dataset_digests(raw: Path) -> dict[str, str]:
    """Returns the digests of a dataset's images and captions, which the caches are made from."""
    return {"images": sha256_of(raw / "images" / MANIFEST), "captions": sha256_of(raw / "captions.jsonl")}


def stated_digests(dataset: Path) -> dict[str, str]:
    """Returns the digests of images and captions that dataset.json states.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        described = json.loads(dataset.read_text(encoding="utf-8"))
        return {name: described[name] for name in ("images", "captions")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{dataset}: damaged, or written by another version ({error!r}); run `fetch dataset` again") from None


def check_data(
    raw: Path, latents: Path, embeds: Path, params_file: Path, *, base: Path, storage: Storage, hashes: bool
) -> None:
    """Checks the image shards, then the caches against the dataset on disk; see `check_caches`."""
    if hashes:
        check_hashes(raw / "images", storage=storage)
    check_caches(latents, embeds, dataset_digests(raw), params_file, base=base, storage=storage, hashes=hashes)


def check_caches(
    latents: Path, embeds: Path, dataset: dict[str, str], params_file: Path, *, base: Path, storage: Storage, hashes: bool
) -> None:
    """Checks that the caches are complete and up to date.

    Args:
        latents: folder of the moments.
        embeds: folder of the embeddings.
        dataset: digests of the images and the captions that the caches should be made from.
        params_file: params.yaml; the parameters in its section `encode` that decide the caches are compared.
        base: folder of the pipeline that should have encoded them.
        storage: where their shards are.
        hashes: True compares the hash of every file that is on this disk, False only its size.

    Raises:
        OutOfDate: if a cache was made from other inputs; says which, what they were and what they are.
        ValueError: if a cache is damaged; says the file, what was expected and what was found.
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
    for folder, wanted, section in ((latents, of_latents, "encode.images"), (embeds, of_embeds, "encode.captions")):
        check_made_by(folder, wanted | {"dtype": DTYPE}, section, storage)
        if hashes:
            check_hashes(folder, storage=storage)
