"""Sampling: which prompts are drawn, from which noise, and what held-out records really look like."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from t2i.core.params import Params
from t2i.data.batches import derived_seed
from t2i.data.manifest import read_manifest
from t2i.data.pixels import EXTENSIONS, decode, to_image, view
from t2i.data.records import Split, hash_fraction, read_captions
from t2i.data.shards import Reader, index
from t2i.model.family import Family
from t2i.model.precision import Precision, computing_in


class Evaluate(Params):
    """Section `evaluate`."""

    prompts: int = Field(ge=2)
    """Most held-out records whose captions are sampled and measured."""
    num_inference_steps: int = Field(ge=1)
    """Steps of the checkpoint's own scheduler."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598); 1 is none."""
    precision: Precision
    """What sampling and the denoising errors are computed in."""
    retention_prompts: list[str]
    """Prompts of what the base can draw and the dataset has not: what a fine-tune may forget."""
    train_images: int = Field(ge=2)
    """Training images, at most, that copies are looked for among."""
    timesteps_per_record: int = Field(ge=1)
    """Timesteps at which the denoising error of each record is taken."""
    resamples: int = Field(ge=100)
    """Bootstrap resamples for the 95 % intervals."""
    seed: int
    """Decides the noise that samples start from, and which records are taken."""


@dataclass(frozen=True)
class Inputs:
    """What measuring reads."""

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
    said, keys = captions(inputs), some_keys(inputs, "heldout", params.prompts, params.seed)
    real = list(images_of(inputs, "heldout", keys))
    return HeldOut(keys, [said[key][0] for key in keys], real, real[0].width)


def captions(inputs: Inputs) -> dict[str, list[str]]:
    """Returns every record's captions by key."""
    return {row["key"]: row["captions"] for row in read_captions(inputs.raw / "captions.jsonl")}


def some_keys(inputs: Inputs, split: Split, most: int, seed: int) -> list[str]:
    """Returns at most `most` records of a split, by key, in an order that the seed decides.

    Raises:
        ValueError: where there are fewer than two, of which nothing can be measured.
    """
    keys = [member.key for member in index(inputs.raw / "images", split, EXTENSIONS.values())]
    if len(keys) < 2:
        advice = f"give more records, or change `fetch.heldout_fraction` or `fetch.max_{split}_records`"
        raise ValueError(f"{inputs.raw}: {len(keys)} {split} record, wanted 2 or more: {advice}")
    return sorted(keys, key=lambda key: hash_fraction(f"{seed}:{key}"))[:most]


def images_of(inputs: Inputs, split: Split, keys: Sequence[str]) -> Iterator[Image.Image]:
    """Yields the centred views of some records of a split, resized as `encode images` does it."""
    made = read_manifest(inputs.latents).made_by["params"]
    members, reader = {member.key: member for member in index(inputs.raw / "images", split, EXTENSIONS.values())}, Reader()
    for key in keys:
        image = decode(bytes(reader.content(members[key])), made["background"])
        yield to_image(view(image, made["resolution_px"], made["interpolation"], (0.5, 0.5), False).pixels)


@dataclass(frozen=True)
class Drawing:
    """How images are drawn."""

    num_inference_steps: int
    guidance_scale: float
    size_px: int
    precision: Precision
    batch_size: int
    device: str
    negative_prompt: str = ""


def draw(how: Drawing, family: Family, prompts: Sequence[str], seeds: Sequence[tuple[int, str]]) -> list[Image.Image]:
    """Returns an image a prompt, each from noise that its seed and name alone decide: never its place among the others."""
    drawn: list[Image.Image] = []
    with tqdm(total=len(prompts), desc="sampling", unit=" images") as progress:
        for at in range(0, len(prompts), how.batch_size):
            chunk = seeds[at : at + how.batch_size]
            with computing_in(how.precision, how.device):
                drawn += family.sample(
                    prompts[at : at + how.batch_size],
                    [torch.Generator().manual_seed(derived_seed(seed, "sample", name)) for seed, name in chunk],
                    num_inference_steps=how.num_inference_steps,
                    guidance_scale=how.guidance_scale,
                    negative_prompt=how.negative_prompt,
                    size_px=how.size_px,
                    device=how.device,
                )
            progress.update(len(chunk))
    return drawn
