"""Sampling: which held-out records are drawn, from which noise, and what they really look like."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from t2i.batches import derived_seed
from t2i.family import Family
from t2i.images import decode, to_image, view
from t2i.params import Params
from t2i.records import Split, hash_fraction
from t2i.shards import Reader, index, read_manifest
from t2i.work import fresh


class Evaluate(Params):
    """Section `evaluate`."""

    prompts: int = Field(ge=2)
    """Most held-out records whose captions are sampled and measured."""
    num_inference_steps: int = Field(ge=1)
    """Steps of the checkpoint's own scheduler."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598); 1 is none."""
    timesteps_per_record: int = Field(ge=1)
    """Timesteps at which the held-out loss of each record is taken."""
    grid_prompts: int = Field(ge=1)
    """Prompts in the picture that shows base, fine-tuned and real side by side."""
    seed: int
    """Decides the noise that samples start from, and which records are taken."""


@dataclass(frozen=True)
class Inputs:
    """What measuring reads."""

    clip: Path
    raw: Path
    latents: Path
    embeds: Path


@dataclass(frozen=True)
class HeldOut:
    """The held-out records that are measured, in an order that the seed decides."""

    keys: list[str]
    prompts: list[str]
    real: list[Image.Image]
    resolution_px: int


def heldout(params: Evaluate, inputs: Inputs) -> HeldOut:
    """Returns the held-out records that are measured, with their first captions."""
    captions = {}
    for line in (inputs.raw / "captions.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        captions[row["key"]] = row["captions"][0]
    images = some_images(inputs, "heldout", params.prompts, params.seed)
    keys = [key for key, _ in images]
    return HeldOut(keys, [captions[key] for key in keys], [image for _, image in images], images[0][1].width)


def some_images(inputs: Inputs, split: Split, most: int, seed: int) -> list[tuple[str, Image.Image]]:
    """Returns keys and centred views of some records of a split, drawn by seed, as `encode images` saw them."""
    made = read_manifest(inputs.latents)["made_by"]["params"]
    members = sorted(index(inputs.raw / "images", split), key=lambda member: hash_fraction(f"{seed}:{member.key}"))[:most]
    reader, images = Reader(), []
    for member in members:
        image = decode(bytes(reader.content(member)), made["background"])
        seen = view(image, made["resolution_px"], made["interpolation"], (0.5, 0.5), False)
        images.append((member.key, to_image(seen.pixels)))
    return images


def sample(params: Evaluate, family: Family, records: HeldOut, out: Path, *, batch_size: int, device: str) -> list[Image.Image]:
    """Returns an image a held-out prompt, from noise that seed and record alone decide, and keeps it as `out`/KEY.png."""
    drawn: list[Image.Image] = []
    with tqdm(total=len(records.keys), desc="sampling", unit=" images") as progress:
        for at in range(0, len(records.keys), batch_size):
            keys, prompts = records.keys[at : at + batch_size], records.prompts[at : at + batch_size]
            drawn += family.sample(
                prompts,
                [torch.Generator().manual_seed(derived_seed(params.seed, "sample", key)) for key in keys],
                num_inference_steps=params.num_inference_steps,
                guidance_scale=params.guidance_scale,
                size_px=records.resolution_px,
                device=device,
            )
            progress.update(len(keys))
    with fresh(out) as folder:
        for key, image in zip(records.keys, drawn, strict=True):
            image.save(folder / f"{key}.png")
    return drawn
