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

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from t2i.core.files import whole
from t2i.data.index import write_index
from t2i.data.manifest import describe
from t2i.data.members import shard_bytes
from t2i.data.storage import File

os.environ.setdefault("WDS_SECURE", "1")


def write_shard(path: Path, members: Mapping[str, tuple[str, bytes]]) -> list[File]:
    """Writes one tar, sorted by key and without times or owners, so that equal records give equal bytes; and its index.

    Args:
        path: the shard, written atomically.
        members: extension and content of the file for each key.

    Returns:
        The rows of shard and index for the manifest.

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
    return [describe(path, len(members)), write_index(path)]


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
