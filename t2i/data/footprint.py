"""Footprint: how many bytes of its sets training needs at a time, for a disk that does not hold all of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from t2i.data.index import index_name
from t2i.data.order import Order, Windows
from t2i.data.records import Split, split_of_shard
from t2i.data.storage import File


class ShardSize(NamedTuple):
    """The size of a shard."""

    records: int
    tar_bytes: int
    index_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes of the shard and its index."""
        return self.tar_bytes + self.index_bytes


def shard_sizes(files: Sequence[File], split: Split) -> list[ShardSize]:
    """Returns the sizes of the shards of a split, in order, from the files of a manifest; an index that it lacks counts 0."""
    there = {file.name: file for file in files}
    shards = [there[name] for name in sorted(there) if split_of_shard(name) == split]
    indices = [there.get(index_name(file.name)) for file in shards]
    return [ShardSize(file.count, file.bytes, index.bytes if index else 0) for file, index in zip(shards, indices, strict=True)]


def windows_bytes(latents: Sequence[ShardSize], embeds: Sequence[ShardSize], order: Order, batch_size: int) -> int:
    """Returns the most bytes of the windows in which a batch can be: two, or more if windows have fewer records than it.

    Args:
        latents: the shards of moments of the training records.
        embeds: the shards of embeddings.
        order: `train.order`.
        batch_size: images per optimizer step.
    """
    _, shards = order(len(latents), 0, 0)
    records, rest = sorted(shard.records for shard in latents), len(latents) % shards
    needed = (1 + -(-(batch_size - 1) // sum(records[:shards]))) * window_bytes(latents, embeds, order)
    if rest and sum(records[:rest]) < batch_size - 1:  # the last window of an epoch, with a window on either side
        needed += window_bytes(latents, embeds, Windows(name="windows", shards=rest))
    return min(needed, sum(shard.bytes for of_set in (latents, embeds) for shard in of_set))


def window_bytes(latents: Sequence[ShardSize], embeds: Sequence[ShardSize], order: Order) -> int:
    """Returns the most bytes that training reads during one window of an epoch; a batch in which two windows meet needs both.

    Args:
        latents: the shards of moments of the training records, of which the order makes windows.
        embeds: the shards of embeddings. A window needs each one that has a record of the window.
        order: `train.order`; with `global`, an epoch is one window.
    """
    _, shards = order(len(latents), 0, 0)
    of_texts = np.cumsum([0, *(shard.bytes for shard in embeds)])
    text_ends, ends = (np.cumsum([shard.records for shard in of_set]) for of_set in (embeds, latents))
    starts = np.append(0, ends)[:-1]
    first, last = np.searchsorted(text_ends, starts, side="right"), np.searchsorted(text_ends, ends, side="left")
    needed = np.array([shard.bytes for shard in latents]) + of_texts[last + 1] - of_texts[first]
    both = sum(shard.bytes for of_set in (latents, embeds) for shard in of_set)
    return min(int(np.sort(needed)[-shards:].sum()), both)
