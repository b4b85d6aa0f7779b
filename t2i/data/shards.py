"""Shards: standard WebDataset tars. Equal records give equal bytes; the reader maps the files and finds records by index.

The sets on disk (any webdataset reader can read them):

    data/raw/images/{train,heldout}-00000.tar     KEY.png|jpg|webp|...: the original image file
    data/latents/{train,heldout}-00000.tar        KEY.safetensors: moments [views, 2c, h, w] float16, unscaled;
                                                  original_size [views, 2] and crop [views, 2] (top, left) int32;
                                                  flipped [views] uint8
    data/embeds/{train,heldout}-00000.tar         KEY.safetensors: each conditioning tensor [captions, ...] float16
    data/embeds/empty.safetensors                 each conditioning tensor [1, ...]: the empty prompt, for dropped prompts
    data/embeds/repeats.json                      how often an epoch of training has a record, by key; only if one is not once
    data/validation-prompts/embeds.safetensors    each conditioning tensor [prompts, ...]; the texts are in prompts.json

Each set has a manifest.json: the record count, bytes and sha256 of each file, and what the set was made from.
"""

import json
import math
import os
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from t2i.core.files import whole
from t2i.data.manifest import File, describe, read_manifest
from t2i.data.records import Split, split_of_shard

os.environ.setdefault("WDS_SECURE", "1")

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
    """The location of a record's file in a shard."""

    shard: Path
    key: str
    extension: str
    offset: int
    """Position of the content in the shard, in bytes."""
    size: int
    """Size of the content, in bytes."""

    @property
    def split(self) -> Split | None:
        """The split of the shard."""
        return split_of_shard(self.shard.name)


def write_shard(path: Path, members: Mapping[str, tuple[str, bytes]]) -> File:
    """Writes one tar, sorted by key and without times or owners, so that equal records give equal bytes.

    Args:
        path: the shard, written atomically.
        members: extension and content of the file for each key.

    Returns:
        The shard's row for the manifest.

    Raises:
        ValueError: if the disk is full.
    """
    from webdataset import TarWriter

    size = shard_bytes(len(content) for _, content in members.values())
    with whole(path, size) as partial, partial.open("wb") as file:
        with TarWriter(file, encoder=False, mtime=0, user="", group="") as writer:
            for key in sorted(members):
                extension, content = members[key]
                writer.write({"__key__": key, extension: content})
        file.flush()
        os.fsync(file.fileno())
    return describe(path, len(members))


def shard_bytes(sizes: Iterable[int]) -> int:
    """Returns the size of a shard in bytes, from the sizes of its records."""
    end = sum(_BLOCK + _padded(size) for size in sizes) + 2 * _BLOCK
    return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def index(folder: Path, split: str, extensions: Collection[str] = ("safetensors",)) -> list[Member]:
    """Returns the location of every record of a split, in the order of the shards.

    Args:
        folder: the set.
        split: `train` or `heldout`.
        extensions: file extensions that its records may have.

    Raises:
        ValueError: if a tar has a member that is not a plain file KEY.EXTENSION with one of the extensions, has a key twice,
            or does not have as many records as the manifest states.
    """
    members: dict[str, Member] = {}
    for file in read_manifest(folder).files:
        if split_of_shard(file.name) != split:
            continue
        path, before = folder / file.name, len(members)
        for member in scan(path):
            if member.extension not in extensions:
                wanted = ", ".join(sorted(set(extensions)))
                raise ValueError(f"{path}: record {member.key} has extension .{member.extension}, wanted one of {wanted}")
            if member.key in members:
                raise ValueError(f"{path}: duplicate record {member.key}, first in {members[member.key].shard.name}")
            members[member.key] = member
        if (found := len(members) - before) != file.count:
            raise ValueError(f"{path}: expected {file.count} records, found {found}; run the stage that writes it again")
    return list(members.values())


class Reader:
    """Maps each shard once, and returns records as tensors that share the memory of the file."""

    def __init__(self) -> None:
        self._maps: dict[Path, memoryview] = {}
        self._layouts: dict[bytes, dict[str, Any]] = {}

    def content(self, member: Member) -> memoryview:
        """Returns the bytes of a record, without copying them."""
        if member.shard not in self._maps:
            self._maps[member.shard] = _mapped(member.shard)
        return self._maps[member.shard][member.offset : member.offset + member.size]

    def tensors(self, member: Member) -> dict[str, Tensor]:
        """Returns the tensors of a safetensors record, without copying them.

        Raises:
            ValueError: if the content is not a complete safetensors file; names the record.
        """
        try:
            content = self.content(member)
            end = 8 + int.from_bytes(content[:8], "little")
            header = bytes(content[8:end])
            if header not in self._layouts:
                self._layouts[header] = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
            return {name: _view(content[end:], **entry) for name, entry in self._layouts[header].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{member.shard}: record {member.key}: not a complete safetensors file ({error!r})") from None


def _mapped(path: Path) -> memoryview:
    """Returns the content of a file, mapped copy-on-write; unlike `mmap`, torch keeps no file descriptor for it."""
    size = path.stat().st_size
    if not size:
        raise ValueError("an empty file")
    content: memoryview = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy().data
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a single safetensors file.

    Raises:
        ValueError: if the file is not a complete safetensors file.
    """
    return Reader().tensors(Member(path, path.stem, "safetensors", 0, path.stat().st_size))


def pack(tensors: Mapping[str, Tensor], place: str) -> bytes:
    """Returns tensors as safetensors bytes, with floating-point tensors cast to float16.

    Raises:
        ValueError: if a value is not finite after the cast; says the place and the tensor.
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
    """Yields the members of a ustar file, all of which must be plain files named KEY.EXTENSION.

    Raises:
        ValueError: if the file is damaged or truncated, or has another kind of member; says the byte position.
    """
    again = "run the stage that writes it again"
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        offset = 0
        while (header := file.read(_BLOCK)).strip(b"\0"):
            if len(header) < _BLOCK or not _checksum_holds(header):
                raise ValueError(f"{path}: damaged or truncated at byte {offset}; {again}")
            name, size = header[:100].rstrip(b"\0").decode("latin-1"), _number(header[124:136])
            key, _, extension = name.partition(".")
            if header[156:157] not in (b"0", b"\0") or not key or not extension or "/" in name or header[345] != 0:
                raise ValueError(f"{path}: member {name!r} at byte {offset} is not a plain file named KEY.EXTENSION")
            if size is None or offset + _BLOCK + size > end:
                raise ValueError(f"{path}: truncated inside {name!r}, at byte {offset}; {again}")
            yield Member(path, key, extension, offset + _BLOCK, size)
            offset += _BLOCK + _padded(size)
            file.seek(offset)
        if len(header) < _BLOCK:
            raise ValueError(f"{path}: no end-of-archive marker at byte {offset}; {again}")


def _checksum_holds(header: bytes) -> bool:
    return _number(header[148:156]) == sum(header[:148]) + 8 * 32 + sum(header[156:])


def _number(field: bytes) -> int | None:
    """Returns the value of an octal field of a tar header; None if it is not a number."""
    digits = field.strip(b"\0 ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _view(data: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    start, end = data_offsets
    count = math.prod(shape)
    if not 0 <= start <= end <= len(data) or min(shape, default=0) < 0 or end - start != count * _DTYPES[dtype].itemsize:
        raise ValueError(f"{dtype} {shape} at {data_offsets} of {len(data)} bytes")
    return torch.frombuffer(data, dtype=_DTYPES[dtype], count=count, offset=start).view(shape)
