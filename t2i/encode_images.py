"""Verb: run the VAE over every view of every image once, and keep the moments."""

from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from t2i.caches import DTYPE
from t2i.family import Family
from t2i.images import EXTENSIONS, Geometry, Interpolation, View, decode, view
from t2i.latents import psnr, sample_latents
from t2i.manifest import MANIFEST
from t2i.params import Params
from t2i.records import SPLITS, hash_fraction
from t2i.shard_set import shard_set
from t2i.shards import Member, Reader, index, pack, scan
from t2i.work import digest_of, sha256_of


class CenterCrop(Params):
    """One view, from the middle."""

    name: Literal["center"]


class RandomCrop(Params):
    """Several views, at places that depend on the seed, the record and the view alone."""

    name: Literal["random"]
    views: int = Field(ge=1)
    """Crops of each image; training takes one a visit."""


class EncodeImages(Params):
    """Section `encode.images`."""

    resolution_px: int = Field(ge=8)
    """Side of the squares that the model learns, a multiple of the VAE's factor."""
    interpolation: Interpolation
    """Filter of the resize."""
    crop: Annotated[CenterCrop | RandomCrop, Field(discriminator="name")]
    """Which squares of a larger image are kept."""
    flip: bool
    """Whether each view is stored mirrored too; leave it off where left and right matter."""
    background: str = Field(pattern="^#[0-9a-fA-F]{6}$")
    """Ground laid under transparent images, `#rrggbb`."""
    seed: int
    """Decides where random crops lie."""
    psnr_records: int = Field(ge=1)
    """Records of each split that are decoded back from their moments, to measure what the VAE loses."""
    min_psnr: float
    """Mean PSNR in decibels below which the stage fails: the VAE does not know such images, or the pixels are wrong."""


def encode_images(
    params: EncodeImages, family: Family, base: Path, raw: Path, out: Path, *, batch_size: int, device: str
) -> dict[str, Any]:
    """Writes the moments of the image shards in `raw` to shards in `out`, one to one; finished shards survive a kill.

    Returns:
        Metrics: counts, and the mean and the least PSNR of what was decoded back.

    Raises:
        ValueError: naming the image that cannot be read, the moments that overflow, or the PSNR that is too low.
    """
    if params.resolution_px % family.vae_factor:
        raise ValueError(
            f"`encode.images.resolution_px` {params.resolution_px} is no multiple of the VAE's {family.vae_factor}"
        )
    made_by = {
        "images": sha256_of(raw / MANIFEST),
        "vae": digest_of(base / "vae"),
        "params": params.model_dump(exclude={"psnr_records", "min_psnr"}),
        "dtype": DTYPE,
        "torch": torch.__version__.split("+")[0],
    }
    members = [member for split in SPLITS for member in index(raw, split, EXTENSIONS.values())]
    with (
        shard_set("encode-images", made_by, out) as made,
        tqdm(total=len(members), desc="encoding", unit=" images") as progress,
    ):
        vae = family.load_vae(device)
        for shard, group in groupby(members, key=lambda member: member.shard):
            own = list(group)
            if not made.add(shard.name, partial(_encode_shard, params, family, vae, own, batch_size, device, progress)):
                progress.update(len(own))
        return {"records": len(members), **_decode_back(params, family, vae, members, made.folder, device)}


def views(params: EncodeImages, member: Member, content: bytes) -> Iterator[View]:
    """Yields an image's stored views; a held-out image has one, from the middle, not flipped."""
    try:
        image = decode(content, params.background)
    except ValueError as error:
        raise ValueError(f"{member.shard}: record {member.key}: {error}") from None
    places, flips = [(0.5, 0.5)], [False]
    if member.shard.name.startswith("train-"):
        flips = [False, True] if params.flip else flips
        if isinstance(params.crop, RandomCrop):
            chance = f"{params.seed}:{member.key}"
            places = [
                (hash_fraction(f"{chance}:{n}:down"), hash_fraction(f"{chance}:{n}:across")) for n in range(params.crop.views)
            ]
    for place in places:
        for flipped in flips:
            yield view(image, params.resolution_px, params.interpolation, place, flipped)


def _encode_shard(
    params: EncodeImages, family: Family, vae: nn.Module, members: list[Member], batch_size: int, device: str, progress: Any
) -> dict[str, tuple[str, bytes]]:
    """Returns the records of a shard of moments, from one of images."""
    contents = {}
    for key, group in groupby(_encode_views(params, family, vae, members, batch_size, device), key=lambda row: row[0]):
        _, geometries, moments = zip(*group, strict=True)
        tensors = {
            "moments": torch.stack(moments),
            "original_size": torch.tensor([seen.original_size for seen in geometries], dtype=torch.int32),
            "crop": torch.tensor([seen.crop for seen in geometries], dtype=torch.int32),
            "flipped": torch.tensor([seen.flipped for seen in geometries], dtype=torch.uint8),
        }
        contents[key] = ("safetensors", pack(tensors, f"{members[0].shard}: record {key}"))
        progress.update()
    return contents


def _encode_views(
    params: EncodeImages, family: Family, vae: nn.Module, members: list[Member], batch_size: int, device: str
) -> Iterator[tuple[str, Geometry, Tensor]]:
    """Yields key, geometry and moments of every stored view; a batch never crosses a shard, whose bits it could change."""
    reader = Reader()
    stored = ((member.key, seen) for member in members for seen in views(params, member, bytes(reader.content(member))))
    while batch := list(islice(stored, batch_size)):
        moments = family.encode_pixels(vae, torch.stack([seen.pixels for _, seen in batch]).to(device)).cpu()
        yield from ((key, seen.geometry, its) for (key, seen), its in zip(batch, moments, strict=True))


def _decode_back(
    params: EncodeImages, family: Family, vae: nn.Module, members: list[Member], shards: Path, device: str
) -> dict[str, float]:
    """PSNR of views rebuilt from the stored moments, over the first records of each split by hash; too low is an error."""
    reader, sampled = Reader(), []
    for split in SPLITS:
        own = [member for member in members if member.shard.name.startswith(f"{split}-")]
        sampled += sorted(own, key=lambda member: hash_fraction(member.key))[: params.psnr_records]
    keys = {(member.shard.name, member.key) for member in sampled}
    stored = {
        (row.shard.name, row.key): row
        for path in sorted({shards / name for name, _ in keys})
        for row in scan(path)
        if (path.name, row.key) in keys
    }
    values = []
    for member in sampled:
        pixels = torch.stack([view.pixels for view in views(params, member, bytes(reader.content(member)))])
        moments = reader.tensors(stored[member.shard.name, member.key])["moments"]
        latents = sample_latents(moments, None, family.scaling_factor, family.shift_factor)
        values += psnr(pixels, family.decode_latents(vae, latents.to(device)).cpu()).tolist()
    mean = sum(values) / len(values)
    if mean < params.min_psnr:
        raise ValueError(
            f"decoded back from their moments, images have a PSNR of {mean:.1f} dB, wanted `encode.images.min_psnr` "
            f"{params.min_psnr}: this VAE does not know such images, or `encode.images.resolution_px` is too small"
        )
    return {"psnr_mean": round(mean, 3), "psnr_min": round(min(values), 3)}
