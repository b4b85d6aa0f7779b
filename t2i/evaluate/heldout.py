"""Held-out data: the prompts that models are measured on, and the real images that belong to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from t2i.data.chance import hash_fraction
from t2i.data.crops import Size
from t2i.data.decoding import EXTENSIONS, decode
from t2i.data.index import Index
from t2i.data.manifest import read_manifest
from t2i.data.pixels import size_of, to_image, view
from t2i.data.reader import Reader
from t2i.data.records import Split, read_captions
from t2i.data.storage import Storage
from t2i.evaluate.section import Evaluate


@dataclass(frozen=True)
class DataFolders:
    """The folders that evaluation reads."""

    raw: Path
    latents: Path
    embeds: Path
    storage: Storage
    """Where their shards are."""

    def images(self, split: Split) -> Index:
        """Returns the index of the images of a split."""
        return Index(self.raw / "images", split, EXTENSIONS.values(), self.storage)


@dataclass(frozen=True)
class HeldOut:
    """The held-out records that models are measured on, in an order that the seed decides."""

    keys: list[str]
    prompts: list[str]
    real: list[Image.Image]
    size_px: Size
    """Height and width of the real images."""


def heldout(section: Evaluate, data: DataFolders) -> HeldOut:
    """Returns the held-out records that models are measured on, with their first captions as prompts."""
    captions_of, keys = captions(data), some_keys(data, "heldout", section.prompts, section.seed)
    real = list(images_of(data, "heldout", keys))
    return HeldOut(keys, [captions_of[key][0] for key in keys], real, (real[0].height, real[0].width))


def captions(data: DataFolders) -> dict[str, list[str]]:
    """Returns the captions of every record, by key."""
    return {row["key"]: row["captions"] for row in read_captions(data.raw / "captions.jsonl")}


def some_keys(data: DataFolders, split: Split, most: int, seed: int) -> list[str]:
    """Returns the keys of at most `most` records of a split, in an order that the seed decides.

    Raises:
        ValueError: the split has fewer than two records, too few to compute the metrics.
    """
    keys = [member.key for member in data.images(split)]
    if len(keys) < 2:
        advice = f"add records, or change `fetch.heldout_fraction` or `fetch.max_{split}_records`"
        raise ValueError(f"{data.raw}: {len(keys)} {split} record(s), wanted 2 or more: {advice}")
    return sorted(keys, key=lambda key: hash_fraction(f"{seed}:{key}"))[:most]


def images_of(data: DataFolders, split: Split, keys: Sequence[str]) -> Iterator[Image.Image]:
    """Yields the centred views of records of a split, resized as in `encode images`."""
    made = read_manifest(data.latents, data.storage).made_by["params"]
    images, reader = data.images(split), Reader(data.storage)
    for key in keys:
        image = decode(reader.content(images.find(key)), made["background"])
        yield to_image(view(image, size_of(made["resolution_px"]), made["interpolation"], (0.5, 0.5), False).pixels)
