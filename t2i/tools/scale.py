"""Scale: what a dataset takes of disks, of the network and of each part of its encoding, and whether caching it pays."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from t2i.core.files import free_bytes, in_bytes
from t2i.data.footprint import window_bytes
from t2i.data.order import Order, Windows
from t2i.data.records import SPLITS, Split
from t2i.encode.part import Part
from t2i.tools.counts import RecordCounts, captions_in
from t2i.tools.memory import check_maps, figure
from t2i.tools.sizes import Sizes

Lines = Iterator[tuple[str, str]]
"""Pairs of a name and an estimate; a name is empty if the line goes on with the one before."""

_IMAGE_BYTES = 100_000
"""Bytes of an image file, for an example."""
_WINDOW = Windows(name="windows", shards=16)
"""An order to suggest."""


class Rates(NamedTuple):
    """How long the repeated operations take, in seconds."""

    view: float
    """The VAE, for one view of an image."""
    caption: float
    """The text encoders, for one caption."""
    image: float | None
    """Training, per image; None if it is not known."""
    by: str
    """What computes, such as `one process on this machine`."""


class Work(NamedTuple):
    """The numbers of views and captions to encode."""

    views: int
    captions: int

    def seconds(self, rates: Rates) -> float:
        """Returns how long encoding them takes."""
        return self.views * rates.view + self.captions * rates.caption


def work_of(dataset: RecordCounts, views: dict[Split, int], *splits: Split) -> Work:
    """Returns the work of encoding some splits, from the number of views of a record in each split."""
    return Work(
        sum(views[split] * dataset.records(split) for split in splits), sum(dataset.captions_of(split) for split in splits)
    )


def set_lines(sizes: Sizes, dataset: RecordCounts, data: Path | None = None, cache: int | None = None) -> Lines:
    """Yields the bytes of each set, in all and per record, and what each disk holds of them.

    Args:
        sizes: the sizes of the shards.
        dataset: the numbers of records.
        data: the folder of the sets, whose free bytes are said.
        cache: the most bytes of shards on this disk, if a store has them.
    """
    records = sum(map(dataset.records, SPLITS))
    if dataset.raw_bytes is None:
        yield "images and captions", f"not known; with {in_bytes(_IMAGE_BYTES)} per image: {in_bytes(records * _IMAGE_BYTES)}"
    else:
        yield "images and captions", f"{in_bytes(dataset.raw_bytes)}, {in_bytes(dataset.raw_bytes // records)} per record"
    for name, shards in sizes.sets().items():
        tars = [shard.tar_bytes for shard in shards]
        each = f"in {len(tars):,} shards of up to {in_bytes(max(tars))}"
        yield name, f"{in_bytes(sum(tars))}, {in_bytes(sum(tars) // records)} per record, {each}"
    indices = sum(shard.index_bytes for shards in sizes.sets().values() for shard in shards)
    yield "indices", f"{in_bytes(indices)}, one file beside each shard"
    both = in_bytes(sizes.bytes(*SPLITS))
    free = f"; {in_bytes(free_bytes(data))} are free in {data}" if data else ""
    if cache is not None:
        yield (
            "disk",
            f"{in_bytes(indices)} of indices, and up to {in_bytes(cache)} of shards in use (`runtime.shard_cache`){free}",
        )
        yield "store", f"{both} of moments and embeddings, beside the images"
    else:
        yield "disk, to encode", f"{both} of moments, embeddings and indices, beside the images{free}"
        yield "disk, to train", f"{both} on each machine, on a disk that all share, or in a store (`runtime.store`)"
    try:
        check_maps(2 * sum(map(len, sizes.sets().values())))  # shards and indices
    except ValueError as error:
        yield "too many files", str(error)


def part_lines(sizes: Sizes, dataset: RecordCounts, views: dict[Split, int], parts: int, rates: Rates) -> Lines:
    """Yields what the largest part of `encode images` and of `encode captions` has to do, with `--part k/n`."""
    times = {
        "images": [views[split] * records * rates.view for split in SPLITS for records in dataset.images[split]],
        "captions": [captions_in(shard) * rates.caption for split in SPLITS for shard in dataset.captions[split]],
    }
    for (kind, seconds), of_set in zip(times.items(), sizes.sets().values(), strict=True):
        shares = [Part(number, parts) for number in range(1, min(parts, len(of_set)) + 1)]
        size = max(sum(shard.bytes for shard in share.shards(of_set)) for share in shares)
        longest = clock(max(sum(share.shards(seconds)) for share in shares))
        count = f"at most {len(shares[0].shards(of_set)):,} of {len(of_set):,} shards"
        yield f"part, encode {kind}", f"{count}, writes {in_bytes(size)}, {longest} for {rates.by}"
    if (idle := parts - max(map(len, times.values()))) > 0:
        yield "", f"{idle:,} of {parts:,} parts have no shard: use fewer parts"


def reading_lines(sizes: Sizes, dataset: RecordCounts, order: Order, rates: Rates, cache: int | None = None) -> Lines:
    """Yields what training reads, and how much of it has to be near at a time.

    Args:
        sizes: the sizes of the shards.
        dataset: the numbers of records.
        order: `train.order`.
        rates: the times.
        cache: the most bytes of shards on this disk, if a store has them.
    """
    total, shards = sizes.bytes("train"), len(sizes.latents["train"])
    per_image = total / dataset.images_per_epoch
    at_speed = "" if rates.image is None else f", or {in_bytes(int(per_image / rates.image))} per second at that speed"
    yield "reading", f"{in_bytes(int(per_image))} per image{at_speed}, which the disk or the network has to bring"
    if cache is not None:
        window = window_bytes(sizes.latents["train"], sizes.embeds["train"], order)
        yield "shard cache", _fits(min(2 * window, total), cache)
    if isinstance(order, Windows):
        yield "window", _window(sizes, dataset, order, rates)
        return
    yield "window", f"none: `train.order` is global, and each batch reads from all {shards:,} shards, {in_bytes(total)}"
    if shards > _WINDOW.shards:
        yield "", f"with {{name: windows, shards: {_WINDOW.shards}}}: {_window(sizes, dataset, _WINDOW, rates)}"


def _fits(needed: int, cache: int) -> str:
    """Returns whether the shards of two windows fit into the cache of a store."""
    holds = f"{in_bytes(cache)} (`runtime.shard_cache.gb`)"
    if needed > cache:
        return f"{holds} are too small: a batch can need {in_bytes(needed)}; increase it, or make the windows smaller"
    return f"{holds} hold the {in_bytes(needed)} that a batch can need: training does not wait for a store that is fast enough"


def _window(sizes: Sizes, dataset: RecordCounts, order: Windows, rates: Rates) -> str:
    latents, embeds = sizes.latents["train"], sizes.embeds["train"]
    size, shards = window_bytes(latents, embeds, order), min(order.shards, len(latents))
    text = f"{shards:,} shards of moments and their embeddings, {in_bytes(size)}; with the next window, {in_bytes(2 * size)}"
    if rates.image is None:
        return text
    return f"{text}; a window lasts {clock(dataset.images_per_epoch * shards / len(latents) * rates.image)}"


def caching(dataset: RecordCounts, views: dict[Split, int], images: int, rates: Rates) -> str:
    """Returns whether encoding the training records once takes less than encoding each image when training uses it.

    Args:
        dataset: the numbers of records and captions.
        views: the number of views of a record in each split.
        images: the number of images that a run trains on.
        rates: the times.
    """
    records, work = dataset.records("train"), work_of(dataset, views, "train")
    once, at_each_use = work.seconds(rates), Work(images, images).seconds(rates)
    if images < records:
        return (
            f"does not pay for one run: {records:,} training records are encoded, but it uses only {images:,} of them; set "
            f"`fetch.max_train_records: {images}`"
        )
    times = (
        f"encoding takes {clock(once)}; encoding each of the {images:,} images when it is used would take {clock(at_each_use)}"
    )
    return f"pays: {times}" if at_each_use > once else f"does not pay for one run, only if others use the same caches: {times}"


def clock(seconds: float | None) -> str:
    """Returns a duration in words: `about 4 min 06 s`, `about 3 h 05 min`, `about 353 h (14.7 days)`; None is not known."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"about {hours:,} h ({figure(seconds / 86_400)} days)"
    return f"about {hours} h {minutes:02d} min" if hours else f"about {minutes} min {rest:02d} s"
