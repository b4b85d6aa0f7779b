"""Runs the VAE once over every view of every image and stores the moments."""

import sys
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from t2i.data.caches import DTYPE
from t2i.data.crops import Geometry
from t2i.data.decoding import EXTENSIONS
from t2i.data.digests import digest_of, sha256_of
from t2i.data.manifest import MANIFEST
from t2i.data.records import SPLITS
from t2i.data.shards import Member, Reader, index, pack
from t2i.encode.roundtrip import psnr_of_records
from t2i.encode.shard_set import shard_set
from t2i.encode.views import EncodeImages, views
from t2i.model.family import Family, file_of
from t2i.model.runtime import device_in_words

DECIDED_BY = (
    *(f"data/{name}.py" for name in ("chance", "crops", "decoding", "pixels", "records", "shards")),
    *(f"encode/{name}.py" for name in ("images", "shard_set", "views")),
    *(f"model/{name}.py" for name in ("family", "pretrained", "vae")),
)
"""The code that decides the moments. Finished shards are reused only if this code is unchanged."""


def encode_images(
    section: EncodeImages, family: Family, base: Path, raw: Path, out: Path, *, batch_size: int, device: str
) -> dict[str, Any]:
    """Writes one shard of moments to `out` for each image shard in `raw`; finished shards survive a kill.

    Returns:
        Metrics: the number of records, and the mean and lowest PSNR of the images decoded from their moments.

    Raises:
        ValueError: an image cannot be read, moments overflow float16, or the PSNR is too low. The message names it.
    """
    section.check_factor(family.vae_factor)
    made_by = {
        "images": sha256_of(raw / MANIFEST),
        "vae": digest_of(base / "vae"),
        "params": section.model_dump(exclude={"psnr_records", "min_psnr"}),
        "dtype": DTYPE,
        "torch": torch.__version__.split("+")[0],
    }
    members = [member for split in SPLITS for member in index(raw, split, EXTENSIONS.values())]
    with shard_set("encode-images", made_by, [*DECIDED_BY, file_of(family)], out) as made:
        print(
            f"encoding {len(members)} images on {device_in_words(device)}; finished shards: {made.folder}",
            file=sys.stderr,
        )
        vae = family.load_vae(device)
        with tqdm(total=len(members), desc="encoding", unit=" images") as progress:
            for shard, group in groupby(members, key=lambda member: member.shard):
                own = list(group)
                if not made.add(shard.name, partial(_encode_shard, section, family, vae, own, batch_size, device, progress)):
                    progress.update(len(own))
        found = psnr_of_records(section, family, vae, members, made.folder, batch_size=batch_size, device=device)
        return {"records": len(members), **_check_psnr(section, found)}


def _encode_shard(
    section: EncodeImages, family: Family, vae: nn.Module, members: list[Member], batch_size: int, device: str, progress: Any
) -> dict[str, tuple[str, bytes]]:
    """Returns the records of the shard of moments that belongs to one image shard."""
    contents = {}
    for key, group in groupby(_encode_views(section, family, vae, members, batch_size, device), key=lambda row: row[0]):
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
    section: EncodeImages, family: Family, vae: nn.Module, members: list[Member], batch_size: int, device: str
) -> Iterator[tuple[str, Geometry, Tensor]]:
    """Yields key, geometry and moments of every view. A batch never spans two shards, so shards do not affect each other."""
    reader = Reader()
    stored = ((member.key, seen) for member in members for seen in views(section, member, bytes(reader.content(member))))
    while batch := list(islice(stored, batch_size)):
        moments = family.encode_pixels(vae, torch.stack([seen.pixels for _, seen in batch]).to(device)).cpu()
        yield from ((key, seen.geometry, its) for (key, seen), its in zip(batch, moments, strict=True))


def _check_psnr(section: EncodeImages, found: dict[str, list[float]]) -> dict[str, float]:
    values = [value for of_record in found.values() for value in of_record]
    mean = sum(values) / len(values)
    if mean < section.min_psnr:
        raise ValueError(
            f"images decoded from their moments have a PSNR of {mean:.1f} dB, wanted at least `encode.images.min_psnr` "
            f"{section.min_psnr}: choose a base whose VAE fits these images, or increase `encode.images.resolution_px`"
        )
    return {"psnr_mean": round(mean, 3), "psnr_min": round(min(values), 3)}
