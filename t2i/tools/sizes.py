"""Sizes: the bytes of the shards of moments and embeddings, from one view, one caption, and the numbers of records."""

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from t2i.data.footprint import ShardSize
from t2i.data.members import shard_bytes
from t2i.data.records import SPLITS, Split
from t2i.data.shards import pack, write_shard
from t2i.tools.counts import RecordCounts


class Sizes(NamedTuple):
    """The sizes of all shards."""

    latents: dict[Split, list[ShardSize]]
    embeds: dict[Split, list[ShardSize]]

    def sets(self) -> dict[str, list[ShardSize]]:
        """Returns the shards of both splits, by what they hold."""
        return {name: [*chain(*of_set.values())] for name, of_set in (("moments", self.latents), ("embeddings", self.embeds))}

    def bytes(self, *splits: Split) -> int:
        """Returns the bytes of both sets, with their indices, in some splits."""
        return sum(shard.bytes for of_set in self for split in splits for shard in of_set[split])


def sizes_of(dataset: RecordCounts, views: Mapping[Split, int], moments: Tensor, conditioning: Mapping[str, Tensor]) -> Sizes:
    """Returns the exact sizes of the shards that encoding writes; of the indices, the most if keys differ in length.

    Args:
        dataset: the numbers of records and captions.
        views: the number of views of a record in each split.
        moments: [2c, h, w], of one view.
        conditioning: the tensors of one caption, without a batch axis.
    """
    index = _index_bytes(dataset.key_width)
    of_text = cache(lambda captions: _text_bytes(conditioning, captions))

    @cache
    def images(split: Split, records: int) -> ShardSize:
        return ShardSize(records, shard_bytes(repeat(_image_bytes(moments, views[split]), records)), index(records))

    @cache
    def texts(counts: tuple[tuple[int, int], ...]) -> ShardSize:
        records = sum(number for _, number in counts)
        sizes = chain.from_iterable(repeat(of_text(captions), number) for captions, number in counts)
        return ShardSize(records, shard_bytes(sizes), index(records))

    return Sizes(
        {split: [images(split, records) for records in dataset.images[split]] for split in SPLITS},
        {split: [texts(tuple(sorted(shard.items()))) for shard in dataset.captions[split]] for split in SPLITS},
    )


def _text_bytes(conditioning: Mapping[str, Tensor], captions: int) -> int:
    """Returns the bytes of one record of embeddings, packed as in `encode captions`."""
    return len(pack({name: t.expand(captions, *t.shape) for name, t in conditioning.items()}, ""))


def _image_bytes(moments: Tensor, views: int) -> int:
    """Returns the bytes of one record of moments, packed as in `encode images`."""
    pairs = torch.zeros(views, 2, dtype=torch.int32)
    flipped = torch.zeros(views, dtype=torch.uint8)
    image = {"moments": moments.expand(views, *moments.shape), "original_size": pairs, "crop": pairs.clone()}
    return len(pack(image | {"flipped": flipped}, ""))


def _index_bytes(key_width: int) -> Callable[[int], int]:
    """Returns the bytes of an index by its number of records: a header and equal rows, as two small ones show."""
    with tempfile.TemporaryDirectory() as folder:
        keys = [f"{number:0{key_width}}" for number in range(2)]
        shards = [dict.fromkeys(some, ("safetensors", b"")) for some in (keys[:1], keys)]
        (_, one), (_, two) = (write_shard(Path(folder) / f"{len(shard)}.tar", shard) for shard in shards)
    return lambda records: one.bytes + (records - 1) * (two.bytes - one.bytes)
