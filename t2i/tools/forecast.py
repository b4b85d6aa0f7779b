"""Forecast: what any number of records takes with a published base, before anything is fetched. Computed, not measured."""

from typing import NamedTuple

import torch

from t2i.data.order import Windows
from t2i.data.records import SPLITS, Split
from t2i.tools.counts import RecordCounts, alike
from t2i.tools.memory import figure
from t2i.tools.operations import Operations, operations
from t2i.tools.published import LATENT_CHANNELS, SIZES, TOKENS, VAE_FACTOR, BaseSize
from t2i.tools.scale import Rates, Work, clock, part_lines, reading_lines, set_lines
from t2i.tools.sizes import Sizes, sizes_of

RECORDS_PER_SHARD = 512
ORDER = Windows(name="windows", shards=16)
VIEWS: dict[Split, int] = dict.fromkeys(SPLITS, 1)


class Forecast(NamedTuple):
    """What a number of records takes."""

    dataset: RecordCounts
    sizes: Sizes
    operations: Operations


def forecast_of(name: BaseSize, records: int, size_px: int, captions: int = 1) -> Forecast:
    """Returns what records of one view of `size_px` x `size_px` pixels take; all of them are training records."""
    dataset = alike({"train": records, "heldout": 0}, captions, RECORDS_PER_SHARD, RECORDS_PER_SHARD)
    side = size_px // VAE_FACTOR
    moments, text = torch.zeros(2 * LATENT_CHANNELS, side, side), SIZES[name].text
    conditioning = {"encoder_hidden_states": torch.zeros(TOKENS, sum(encoder["hidden_size"] for encoder in text))}
    if pooled := text[-1].get("projection_dim"):
        conditioning["text_embeds"] = torch.zeros(pooled)
    return Forecast(dataset, sizes_of(dataset, VIEWS, moments, conditioning), operations(name, size_px))


def forecast(
    name: BaseSize, records: int, size_px: int | None = None, *, captions: int, parts: int | None, tflops: float
) -> list[tuple[str, str]]:
    """Returns what a dataset takes, one (name, estimate) pair per line.

    Args:
        name: the base.
        records: the number of training records.
        size_px: the side of the images, in pixels; None: the usual one of this base.
        captions: the number of captions of each record.
        parts: the number of parts that share the encoding; None: there are no parts.
        tflops: operations that a GPU computes, in 10^12 per second.

    Raises:
        ValueError: if the side is not a multiple of 8.
    """
    if (size_px := size_px or SIZES[name].sizes_px[0]) % VAE_FACTOR:
        raise ValueError(f"`--resolution-px` is {size_px}, wanted a multiple of {VAE_FACTOR}, the pixels of a latent")
    dataset, sizes, counted = forecast_of(name, records, size_px, captions)
    view, caption, image = (number / tflops / 1e12 for number in counted)
    rates = Rates(view, caption, image, f"a GPU at {tflops:g} TFLOP/s")
    encoding, at_each_use = Work(1, captions).seconds(rates), Work(1, 1).seconds(rates)
    epochs = "1 epoch" if captions == 1 else f"{figure(encoding / at_each_use)} epochs"
    of_record, of_image = (counted.view + captions * counted.caption) / 1e12, counted.image / 1e12
    settings = f"`records_per_shard: {RECORDS_PER_SHARD}`, `train.order: {{name: windows, shards: {ORDER.shards}}}`"
    lines = [
        ("records", f"{records:,} for training, of one view at {size_px} px and {captions} caption{'s' * (captions > 1)}"),
        ("", f"computed, not measured, with {settings}"),
        *set_lines(sizes, dataset),
        ("operations", f"{of_record:.3g} TFLOP to encode a record, {of_image:.3g} to train on an image, with the whole UNet"),
        ("time, encode", f"{clock(records * encoding)} for {rates.by}"),
        ("time, train", f"{clock(records * image)} per epoch for {rates.by}: {1 / image:.3g} images per second"),
        *reading_lines(sizes, dataset, ORDER, rates),
        ("caching", f"pays if training has more than {epochs}; without it, each epoch takes {at_each_use / image:.0%} longer"),
        ("", "in less than 1 epoch, some of what is encoded is never used: set `fetch.max_train_records`"),
    ]
    return [*lines, *(part_lines(sizes, dataset, VIEWS, parts, rates) if parts else ())]
