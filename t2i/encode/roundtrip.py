"""Checks that pixels, VAE and shards fit together: decodes stored moments and compares them with the images."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t2i.data.chance import hash_fraction
from t2i.data.members import Member, scan
from t2i.data.reader import Reader
from t2i.data.records import SPLITS
from t2i.data.storage import Storage
from t2i.encode.views import EncodeImages, views
from t2i.model.family import Family
from t2i.model.latents import psnr, sample_latents

MOST_LOST_DB = 0.1
"""Most that the mean PSNR may be lower than with fp32."""


def psnr_of_records(
    section: EncodeImages,
    family: Family,
    vae: nn.Module,
    images: list[Member],
    latents: Mapping[str, Path],
    storage: Storage,
    *,
    batch_size: int,
    device: str,
) -> dict[str, list[float]]:
    """Returns the PSNR in decibels between source pixels and decoded moments: by key, one value per view.

    Args:
        section: `psnr_records` is the number of records checked per split, chosen by hash; the other fields made the views.
        family: the checkpoint whose VAE encoded the images.
        vae: its VAE.
        images: every record of the image shards.
        latents: the paths of the shards of moments, by the names of the image shards.
        storage: where all these shards are.
        batch_size: the number of latents decoded at once.
        device: the device of the VAE.

    Raises:
        ValueError: a record has no moments.
    """
    reader, sampled = Reader(storage), _sampled(section, images)
    stored, found = dict[tuple[str, str], Member](), {}
    for name in sorted({member.shard.name for member in sampled}):
        storage.content(latents[name])  # which fetches it
        stored |= {(name, row.key): row for row in scan(latents[name])}
    for member in sampled:
        if (row := stored.get((member.shard.name, member.key))) is None:
            raise ValueError(f"{latents[member.shard.name]}: no record {member.key}, which {member.shard} has")
        pixels = _pixels(section, member, reader)
        found[member.key] = _psnr(family, vae, pixels, reader.tensors(row)["moments"], batch_size, device)
    return found


def psnr_in_fp32(
    section: EncodeImages,
    family: Family,
    vae: nn.Module,
    images: list[Member],
    storage: Storage,
    *,
    batch_size: int,
    device: str,
) -> dict[str, list[float]]:
    """Returns what `psnr_of_records` would return if the same records had been encoded in fp32."""
    reader, found = Reader(storage), {}
    for member in _sampled(section, images):
        pixels = _pixels(section, member, reader)
        moments = torch.cat([family.encode_pixels(vae, some.to(device)).half().cpu() for some in pixels.split(batch_size)])
        found[member.key] = _psnr(family, vae, pixels, moments, batch_size, device)
    return found


def check_precision(section: EncodeImages, found: dict[str, list[float]], exact: dict[str, list[float]]) -> None:
    """Raises a ValueError if the mean PSNR is lower than with fp32."""
    if not _mean(exact) - _mean(found) <= MOST_LOST_DB:
        raise ValueError(
            f"images decoded from their moments have a PSNR of {_mean(found):.2f} dB, but {_mean(exact):.2f} dB if "
            f"`encode.images.precision` is fp32 instead of {section.precision}, wanted at most {MOST_LOST_DB} dB less: "
            "set it to fp32"
        )


def check_psnr(section: EncodeImages, found: dict[str, list[float]]) -> dict[str, float]:
    """Returns the mean and the lowest PSNR; raises a ValueError if the mean is too low."""
    mean, least = _mean(found), min(value for of_record in found.values() for value in of_record)
    if mean < section.min_psnr:
        raise ValueError(
            f"images decoded from their moments have a PSNR of {mean:.1f} dB, wanted at least `encode.images.min_psnr` "
            f"{section.min_psnr}: choose a base whose VAE fits these images, or increase `encode.images.resolution_px`"
        )
    return {"psnr_mean": round(mean, 3), "psnr_min": round(least, 3)}


def _sampled(section: EncodeImages, images: list[Member]) -> list[Member]:
    sampled = []
    for split in SPLITS:
        own = [member for member in images if member.split == split]
        sampled += sorted(own, key=lambda member: hash_fraction(member.key))[: section.psnr_records]
    return sampled


def _pixels(section: EncodeImages, member: Member, reader: Reader) -> Float[Tensor, "views 3 h w"]:
    return torch.stack([view.pixels for view in views(section, member, reader.content(member))])


def _psnr(
    family: Family,
    vae: nn.Module,
    pixels: Float[Tensor, "views 3 h w"],
    moments: Float[Tensor, "views m _ _"],
    batch_size: int,
    device: str,
) -> list[float]:
    scaled = sample_latents(moments, None, family.scaling_factor, family.shift_factor)
    decoded = torch.cat([family.decode_latents(vae, some.to(device)).cpu() for some in scaled.split(batch_size)])
    values: list[float] = psnr(pixels, decoded).tolist()
    return values


def _mean(found: dict[str, list[float]]) -> float:
    values = [value for of_record in found.values() for value in of_record]
    return sum(values) / len(values)
