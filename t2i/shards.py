"""Shards: standard WebDataset tars, written with the same bytes each time and read by index from a map of the file.

What lies on disk, a line a set (any webdataset user can read all of it):

    data/raw/images/{train,heldout}-00000.tar     KEY.png|jpg|webp|...: the image as it came
    data/latents/{train,heldout}-00000.tar        KEY.safetensors: moments [views, 2c, h, w] float16, unscaled;
                                                  original_size [views, 2] and crop [views, 2] (top, left) int32;
                                                  flipped [views] uint8
    data/embeds/{train,heldout}-00000.tar         KEY.safetensors: each conditioning tensor [captions, ...] float16
    data/embeds/empty.safetensors                 each conditioning tensor [1, ...]: what a dropped prompt becomes
    data/validation-prompts/embeds.safetensors    each conditioning tensor [prompts, ...]; the prompts in prompts.json

Beside each set stands manifest.json: for each shard its count, bytes and sha256, and what made the set.
"""

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from t2i.work import sha256_of

os.environ.setdefault("WDS_SECURE", "1")

MANIFEST = "manifest.json"
_BLOCK = 512
_DTYPES = {
    "F16": torch.float16,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
}


class Member(NamedTuple):
    """Where a record's file lies."""

    shard: Path
    key: str
    extension: str
    offset: int
    """Bytes from the start of the shard to the start of the file's content."""
    size: int
    """Bytes of content."""


def write_shard(path: Path, members: Mapping[str, tuple[str, bytes]]) -> dict[str, Any]:
    """Writes one tar, sorted by key and free of times and owners, so that equal records give equal bytes.

    Args:
        path: the shard; written beside itself and renamed.
        members: extension and content of the file of each key.

    Returns:
        Its row for the manifest: name, count, bytes, sha256.
    """
    from webdataset import TarWriter

    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        with TarWriter(file, encoder=False, mtime=0, user="", group="") as writer:
            for key in sorted(members):
                extension, content = members[key]
                writer.write({"__key__": key, extension: content})
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return describe_shard(path, len(members))


def describe_shard(path: Path, count: int) -> dict[str, Any]:
    """Returns a shard's row for the manifest."""
    return {"name": path.name, "count": count, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def write_manifest(folder: Path, shards: list[dict[str, Any]], made_by: dict[str, Any]) -> None:
    """Writes manifest.json: the shards by name, and what made them."""
    manifest = {"version": 1, "made_by": made_by, "shards": sorted(shards, key=lambda row: row["name"])}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns a set's manifest, once every shard that it names is there with the size that it states.

    Raises:
        ValueError: naming the manifest or the shard, what was expected and what was found.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["name"]: row for row in manifest["shards"]}
    except FileNotFoundError:
        raise ValueError(
            f"{path}: missing: this set of shards was never finished; run the stage that writes {folder}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); run the stage that writes {folder} again") from None
    if manifest.get("version") != 1:
        raise ValueError(f"{path}: version {manifest.get('version')!r}, wanted 1; run the stage that writes {folder} again")
    present = {file.name: file.stat().st_size for file in folder.glob("*.tar")}
    for name, row in rows.items():
        if present.get(name) != row["bytes"]:
            found = "nothing" if name not in present else f"{present[name]} bytes"
            raise ValueError(
                f"{folder / name}: expected {row['bytes']} bytes, found {found}; run the stage that writes it again"
            )
    if extra := sorted(set(present) - set(rows)):
        raise ValueError(f"{folder / extra[0]}: not in {path}; run the stage that writes {folder} again")
    return manifest


def index(folder: Path, split: str) -> list[Member]:
    """Returns where every record of a split lies, in the order of the shards.

    Raises:
        ValueError: where a tar holds anything but plainly named files, or not as many as its manifest states.
    """
    members: list[Member] = []
    for row in read_manifest(folder)["shards"]:
        if row["name"].startswith(f"{split}-"):
            found = list(scan(folder / row["name"]))
            if len(found) != row["count"]:
                raise ValueError(
                    f"{folder / row['name']}: expected {row['count']} records, found {len(found)}; run its stage again"
                )
            members += found
    return members


class Reader:
    """Maps shards once and gives records as tensors that share the file's memory."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._layouts: dict[bytes, dict[str, Any]] = {}

    def content(self, member: Member) -> memoryview:
        """Returns a record's bytes, without a copy."""
        if member.shard not in self._maps:
            with member.shard.open("rb") as file:
                self._maps[member.shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return memoryview(self._maps[member.shard])[member.offset : member.offset + member.size]

    def tensors(self, member: Member) -> dict[str, Tensor]:
        """Returns a safetensors record's tensors, without a copy.

        Raises:
            ValueError: naming the record, where its content is no whole safetensors file.
        """
        content = self.content(member)
        try:
            end = 8 + int.from_bytes(content[:8], "little")
            header = bytes(content[8:end])
            if header not in self._layouts:
                self._layouts[header] = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
            return {name: _view(content[end:], **entry) for name, entry in self._layouts[header].items()}
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{member.shard}: record {member.key}: not a whole safetensors file ({error})") from None


def pack(tensors: Mapping[str, Tensor], place: str) -> bytes:
    """Returns tensors as safetensors bytes, floating ones cast to float16.

    Raises:
        ValueError: naming the place and the tensor, where a value is not finite after the cast.
    """
    packed = {}
    for name, tensor in tensors.items():
        cast = tensor.half() if tensor.is_floating_point() else tensor
        if cast.is_floating_point() and not torch.isfinite(cast).all():
            raise ValueError(f"{place}: `{name}` is not finite in float16 (largest magnitude {tensor.abs().max().item():.3g})")
        packed[name] = cast.contiguous()
    packed_bytes: bytes = to_safetensors(packed)
    return packed_bytes


def scan(path: Path) -> Iterator[Member]:
    """Yields the members of an ustar file; only plain files named KEY.EXTENSION are let through."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        offset = 0
        while offset + _BLOCK <= len(content) and content[offset] != 0:
            header = content[offset : offset + _BLOCK]
            if int(header[148:156].rstrip(b"\0 "), 8) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
                raise ValueError(f"{path}: damaged header at byte {offset}; run the stage that writes it again")
            name = header[:100].rstrip(b"\0").decode("ascii")
            key, _, extension = name.partition(".")
            if header[156:157] not in (b"0", b"\0") or not key or not extension or "/" in name or header[345] != 0:
                raise ValueError(f"{path}: member {name!r} at byte {offset} is no plain file named KEY.EXTENSION")
            size = int(header[124:136].rstrip(b"\0 "), 8)
            if offset + _BLOCK + size > len(content):
                raise ValueError(f"{path}: cut short inside {name!r}; run the stage that writes it again")
            yield Member(path, key, extension, offset + _BLOCK, size)
            offset += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _view(data: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    start, end = data_offsets
    count = int(np.prod(shape, dtype=np.int64))
    if end > len(data) or end - start != count * _DTYPES[dtype].itemsize:
        raise ValueError(f"{end} bytes stated, {len(data)} there")
    return torch.frombuffer(data, dtype=_DTYPES[dtype], count=count, offset=start).view(shape)
