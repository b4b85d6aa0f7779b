"""Runs the VAE once over every view of every image and stores the moments."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from t2i.data.caches import DTYPE
from t2i.data.crops import Geometry
from t2i.data.decoding import EXTENSIONS
from t2i.data.digests import digest_of, sha256_of
from t2i.data.index import Index
from t2i.data.manifest import MANIFEST
from t2i.data.members import Member
from t2i.data.reader import Reader
from t2i.data.records import SPLITS
from t2i.data.shards import pack
from t2i.encode.moments import encode_views
from t2i.encode.pool import Pool
from t2i.encode.roundtrip import psnr_in_fp32, psnr_of_records
from t2i.encode.shard_set import ShardSet, shard_set
from t2i.encode.store import Found, identity
from t2i.encode.views import EncodeImages
from t2i.model.family import Family, file_of
from t2i.model.runtime import device_in_words

DECIDED_BY = (
    *(
        f"data/{name}.py"
        for name in ("chance", "crops", "decoding", "index", "members", "pixels", "reader", "records", "shards")
    ),
    *(f"encode/{name}.py" for name in ("decoder", "images", "moments", "pool", "shard_set", "store", "views")),
    *(f"model/{name}.py" for name in ("family", "precision", "pretrained", "vae")),
)
"""The code that decides the moments. Finished records are reused only if this code is unchanged."""

DECIDE_A_RECORD = ("resolution_px", "interpolation", "background", "precision")
"""The parameters that decide the moments of a view. Which views a record has is part of its identity."""

MOST_LOST_DB = 0.1
"""Most that the mean PSNR may be lower than with fp32."""


def encode_images(
    section: EncodeImages, family: Family, base: Path, raw: Path, out: Path, *, batch_size: int, processes: int, device: str
) -> dict[str, Any]:
    """Writes one shard of moments to `out` for each image shard in `raw`; records made before are not encoded again.

    Returns:
        Metrics: the number of records, and the mean and lowest PSNR of the images decoded from their moments.

    Raises:
        ValueError: an image cannot be read, moments overflow float16, or the PSNR is too low, or lower than with fp32. The
            message names it.
    """
    section.check_factor(family.vae_factor)
    params = section.model_dump(exclude={"psnr_records", "min_psnr"})
    network = {"vae": digest_of(base / "vae"), "dtype": DTYPE, "torch": torch.__version__.split("+")[0]}
    made_by = network | {"images": sha256_of(raw / MANIFEST), "params": params}
    versions = {name: version(name) for name in ("diffusers", "pillow")}
    records_by = network | versions | {name: params[name] for name in DECIDE_A_RECORD}
    for split in SPLITS:
        Index(raw, split, EXTENSIONS.values()).unique_keys()
    members = [member for split in SPLITS for member in Index(raw, split, EXTENSIONS.values())]
    with shard_set("encode-images", made_by, records_by, [*DECIDED_BY, file_of(family)], out) as made:
        shards = _look_up(section, made, members)
        missing = [member for shard in shards for member in shard.missing]
        where = f"on {device_in_words(device)}; finished records: {made.folder.parent}"
        print(f"encoding {len(missing)} of {len(members)} images {where}", file=sys.stderr)
        with Pool(section, missing, batch_size=batch_size, processes=processes) as pool:
            vae = family.load_vae(device)
            records = records_of(encode_views(family, vae, pool.batches(), section.precision, device))
            with tqdm(total=len(missing), desc="encoding", unit=" images") as progress:
                _write(raw, made, shards, records, progress)
        found = psnr_of_records(section, family, vae, members, made.folder, batch_size=batch_size, device=device)
        if section.precision != "fp32":
            exact = psnr_in_fp32(section, family, vae, members, batch_size=batch_size, device=device)
            _check_precision(section, _mean(found), _mean(exact))
        return {"records": len(members), **_check_psnr(section, found)}


class _Shard(NamedTuple):
    """A shard to make."""

    name: str
    found: Found
    missing: list[Member]
    """The images that must be encoded for it."""


def _look_up(section: EncodeImages, made: ShardSet, members: list[Member]) -> list[_Shard]:
    """Returns what each shard needs. A record is identified by the bytes of its image and the views that are stored of it."""
    reader, shards = Reader(), []
    with tqdm(total=len(members), desc="looking up", unit=" images", delay=2) as progress:
        for shard, group in groupby(members, key=lambda member: member.shard):
            own = {member.key: member for member in group}
            identities = {
                key: identity(sha256(reader.content(member)).hexdigest(), section.views(member.split, key))
                for key, member in own.items()
            }
            found = made.find(identities)
            shards.append(_Shard(shard.name, found, [own[key] for key in found.missing]))
            progress.update(len(own))
    return shards


def _write(raw: Path, made: ShardSet, shards: list[_Shard], records: Iterator[dict[str, Tensor]], progress: Any) -> None:
    """Writes every shard as soon as its last record is encoded; `records` yields those of `missing`, in order."""
    for shard in shards:
        new = {}
        for member in shard.missing:
            new[member.key] = next(records)
            progress.update()
        made.add(shard.name, shard.found, partial(packed, raw / shard.name, new))
    made.wait()


def packed(shard: Path, records: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
    """Returns the content of records of a shard, by key."""
    return {key: pack(tensors, f"{shard}: record {key}") for key, tensors in records.items()}


def records_of(views: Iterable[tuple[Member, Geometry, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yields the tensors of every record, from its views."""
    for _, group in groupby(views, key=lambda view: view[0]):
        _, geometries, moments = zip(*group, strict=True)
        yield {
            "moments": torch.stack(moments),
            "original_size": torch.tensor([seen.original_size for seen in geometries], dtype=torch.int32),
            "crop": torch.tensor([seen.crop for seen in geometries], dtype=torch.int32),
            "flipped": torch.tensor([seen.flipped for seen in geometries], dtype=torch.uint8),
        }


def _mean(found: dict[str, list[float]]) -> float:
    values = [value for of_record in found.values() for value in of_record]
    return sum(values) / len(values)


def _check_precision(section: EncodeImages, mean: float, exact: float) -> None:
    if not exact - mean <= MOST_LOST_DB:
        raise ValueError(
            f"images decoded from their moments have a PSNR of {mean:.2f} dB, but {exact:.2f} dB if "
            f"`encode.images.precision` is fp32 instead of {section.precision}, wanted at most {MOST_LOST_DB} dB less: "
            "set it to fp32"
        )


def _check_psnr(section: EncodeImages, found: dict[str, list[float]]) -> dict[str, float]:
    mean, least = _mean(found), min(value for of_record in found.values() for value in of_record)
    if mean < section.min_psnr:
        raise ValueError(
            f"images decoded from their moments have a PSNR of {mean:.1f} dB, wanted at least `encode.images.min_psnr` "
            f"{section.min_psnr}: choose a base whose VAE fits these images, or increase `encode.images.resolution_px`"
        )
    return {"psnr_mean": round(mean, 3), "psnr_min": round(least, 3)}
