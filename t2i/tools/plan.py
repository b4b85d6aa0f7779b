"""Estimates what a run needs before anything is encoded: records, disk space, memory, steps and time."""

import contextlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from t2i.core.files import free_bytes, in_bytes, work_root
from t2i.data.manifest import read_manifest
from t2i.data.members import shard_bytes
from t2i.data.records import SPLITS, Split, read_captions, split_of_shard
from t2i.data.shards import pack
from t2i.fetch.base import check_origin
from t2i.fetch.dataset import Fetch
from t2i.model.family import Family, check_base, load_family
from t2i.model.runtime import Runtime
from t2i.tools.memory import (
    available_memory,
    check_maps,
    checkpoints_bytes,
    count_weights,
    enough_memory,
    figure,
    peak_memory,
    state_bytes,
)
from t2i.tools.probe import Encoders, probe_encoders, probe_forward, probe_step
from t2i.tools.sections import Sections, load_sections
from t2i.train.engine import check_settings


@dataclass(frozen=True)
class RecordCounts:
    """The numbers of records and captions to encode."""

    image_shards: dict[Split, list[int]]
    """Number of records of each image shard."""
    captions: dict[Split, list[int]]
    """Number of captions of each record."""
    images_per_epoch: int
    """The training records, each as often as it is repeated."""
    a_caption: str


def plan(params_file: Path, base: Path, raw: Path, records: int | None) -> list[tuple[str, str]]:
    """Returns what a run needs, one (name, estimate) pair per line.

    Args:
        params_file: the path of params.yaml.
        base: the base model, from `fetch base`.
        raw: the folder of images and captions, from `fetch dataset`.
        records: the number of records to plan for; None: those in `raw`.

    Raises:
        ParamsError: a section is invalid.
        ValueError: the base or the dataset is missing.
    """
    sections = load_sections(params_file)
    train, runtime = sections.train, sections.runtime
    check_settings(train, runtime)
    family = _base(sections, base)
    dataset = _imagined(sections.fetch, records) if records else _fetched(raw)
    with enough_memory(runtime):
        encoders = probe_encoders(family, runtime, sections.encode_images.size_px, dataset.a_caption)
        forward = probe_forward(family, runtime, sections.evaluate.precision, encoders)
    trained, whole = count_weights(base / "unet", train.adapter, train.trainable)
    state, free_memory, step = state_bytes(train, runtime, trained, whole), available_memory(runtime), None
    if state < free_memory:
        with contextlib.suppress(MemoryError), enough_memory(runtime), tempfile.TemporaryDirectory() as folder:
            step = probe_step(train, runtime, family, encoders, Path(folder))
    steps = train.total_steps(dataset.images_per_epoch)
    epochs = figure(steps * train.batch_size / dataset.images_per_epoch)
    return [
        ("records", _records(dataset)),
        *_disk(sections, dataset, encoders, trained),
        *_memory(runtime, whole, state, free_memory, timed=step is not None),
        ("steps", f"{steps} of {train.batch_size} images: {epochs} epochs"),
        *_times(sections, dataset, encoders, forward, step),
    ]


def _records(dataset: RecordCounts) -> str:
    train, heldout = (len(dataset.captions[split]) for split in SPLITS)
    repeats = f" ({dataset.images_per_epoch} with repeats)" if dataset.images_per_epoch != train else ""
    return f"{train} train{repeats}, {heldout} held-out; {sum(map(sum, dataset.captions.values()))} captions"


def _base(sections: Sections, base: Path) -> Family:
    """Returns the base, after checking that it is the one that params.yaml names, and that it can be trained."""
    if not (base / "model_index.json").is_file():
        raise ValueError(f"{base}: no pipeline found; run `t2i fetch base`")
    check_origin(sections.base, base)
    check_base(sections.base.family, base)
    return load_family(sections.base.family, base, sections.train.objective.scheduler_changes())


def _disk(sections: Sections, dataset: RecordCounts, encoders: Encoders, trained: int) -> Iterable[tuple[str, str]]:
    latents, embeds = cache_bytes(sections, dataset, encoders)
    image_shards = sum(map(len, dataset.image_shards.values()))
    text_shards = sum(-(-len(counts) // sections.encode_captions.records_per_shard) for counts in dataset.captions.values())
    check_maps(2 * (image_shards + text_shards))  # and their indices
    yield "moments", f"{in_bytes(latents)} in {image_shards} shards"
    yield "embeddings", f"{in_bytes(embeds)} in {text_shards} shards"
    kept = checkpoints_bytes(sections.train, sections.runtime, trained)
    yield "checkpoints", f"{in_bytes(kept)} in {work_root()}; {in_bytes(free_bytes(work_root()))} are free there"


def _memory(runtime: Runtime, whole: int, state: int, free: int, *, timed: bool) -> Iterable[tuple[str, str]]:
    yield "memory", f"{in_bytes(state)} for weights, gradients, optimizer and EMA of {figure(whole / 1e6)} M parameters"
    if timed:
        yield "", f"{in_bytes(peak_memory(runtime))} peak of this process with one step; {in_bytes(free)} were free before it"
    else:
        yield "", f"{in_bytes(free)} are free, not enough for a training step"


def _fetched(raw: Path) -> RecordCounts:
    """Returns the counts of the dataset that `fetch dataset` wrote."""
    if not (raw / "dataset.json").is_file():
        raise ValueError(
            f"{raw}: no dataset found; run `t2i fetch dataset`, or give a number of records, such as --records 10000"
        )
    files, captions = read_manifest(raw / "images").files, list(read_captions(raw / "captions.jsonl"))
    if not captions:
        raise ValueError(f"{raw / 'captions.jsonl'}: no records; run `t2i fetch dataset` again")
    return RecordCounts(
        {split: [file.count for file in files if split_of_shard(file.name) == split] for split in SPLITS},
        {split: [len(row["captions"]) for row in captions if row["split"] == split] for split in SPLITS},
        sum(row["repeats"] for row in captions if row["split"] == "train"),
        captions[0]["captions"][0],
    )


def _imagined(fetch: Fetch, records: int) -> RecordCounts:
    """Returns the counts of a dataset with this number of records and one caption per record."""
    heldout = min(records - 1, max(1, round(records * fetch.heldout_fraction)))
    counts: dict[Split, int] = {
        "train": min(records - heldout, fetch.max_train_records or records),
        "heldout": min(heldout, fetch.max_heldout_records or records),
    }
    per_shard = fetch.records_per_shard
    shards = {split: [min(per_shard, count - at) for at in range(0, count, per_shard)] for split, count in counts.items()}
    captions = {split: [1] * count for split, count in counts.items()}
    return RecordCounts(shards, captions, counts["train"], "a photograph of something")


def cache_bytes(sections: Sections, dataset: RecordCounts, encoders: Encoders) -> tuple[int, int]:
    """Returns the exact bytes of the shards of moments and of the shards of embeddings."""
    latents = embeds = 0
    per_shard = sections.encode_captions.records_per_shard
    for split in SPLITS:
        record = _image_bytes(encoders, sections.encode_images.count(split))
        latents += sum(shard_bytes([record] * count) for count in dataset.image_shards[split])
        counts = dataset.captions[split]
        sizes = {n: _text_bytes(encoders, n) for n in set(counts)}
        for at in range(0, len(counts), per_shard):
            embeds += shard_bytes([sizes[n] for n in counts[at : at + per_shard]])
    return latents, embeds


def _text_bytes(encoders: Encoders, captions: int) -> int:
    """Returns the bytes of one record of embeddings, packed as in `encode captions`."""
    return len(pack({name: t.expand(captions, *t.shape) for name, t in encoders.conditioning.items()}, ""))


def _image_bytes(encoders: Encoders, views: int) -> int:
    """Returns the bytes of one record of moments, packed as in `encode images`."""
    pairs = torch.zeros(views, 2, dtype=torch.int32)
    moments = encoders.moments.expand(views, *encoders.moments.shape)
    flipped = torch.zeros(views, dtype=torch.uint8)
    return len(pack({"moments": moments, "original_size": pairs, "crop": pairs.clone(), "flipped": flipped}, ""))


def _times(
    sections: Sections, dataset: RecordCounts, encoders: Encoders, forward: float, step: float | None
) -> Iterable[tuple[str, str]]:
    """Yields the time of each stage: the probed operations times their number. Startup and file access are not included."""
    counts = {split: sum(dataset.image_shards[split]) for split in SPLITS}
    p, train, evaluate = sections.runtime.validation, sections.train, sections.evaluate
    steps = train.total_steps(dataset.images_per_epoch)

    def drawing(num_inference_steps: int, guidance_scale: float) -> float:
        return num_inference_steps * (2 if guidance_scale > 1 else 1) * forward

    validation = 4 * min(p.records, *counts.values()) * p.timesteps_per_record * forward
    validation += len(sections.encode_captions.validation_prompts) * drawing(p.num_inference_steps, p.guidance_scale)
    prompts = min(evaluate.prompts, counts["heldout"])
    an_image = encoders.decode_seconds + drawing(evaluate.num_inference_steps, evaluate.guidance_scale)
    measuring = (prompts + len(evaluate.retention_prompts)) * an_image + 2 * prompts * evaluate.timesteps_per_record * forward
    others = [scale for scale in sections.sweep.guidance_scales if scale != evaluate.guidance_scale]
    swept = sum(encoders.decode_seconds + drawing(evaluate.num_inference_steps, scale) for scale in others)
    training = None if step is None else steps * step + (1 + -(-steps // p.every_steps)) * validation
    times = {
        "encode images": sum(sections.encode_images.count(split) * counts[split] for split in SPLITS) * encoders.view_seconds,
        "encode captions": sum(map(sum, dataset.captions.values())) * encoders.caption_seconds,
        "train": training,
        "evaluate base": measuring,
        "evaluate model": measuring + min(sections.sweep.prompts, prompts) * swept,
    }
    whole = None if training is None else sum(filter(None, times.values()))
    for name, value in (times | {"total": whole}).items():
        yield f"time, {name}", _clock(value)
    if step is not None:
        yield "speed", f"{step:.3g} s per step, {train.batch_size / step:.3g} images per second, on this machine"


def _clock(value: float | None) -> str:
    if value is None:
        return "unknown"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"about {hours} h {minutes:02d} min" if hours else f"about {minutes} min {rest:02d} s"
