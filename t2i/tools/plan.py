"""Estimates what a run needs before anything is encoded: records, disk space, memory, steps and time."""

import contextlib
import tempfile
from pathlib import Path

from t2i.core.files import free_bytes, in_bytes, work_root
from t2i.data.records import SPLITS, Split
from t2i.fetch.base import check_origin
from t2i.model.family import Family, check_base, load_family
from t2i.model.runtime import Runtime
from t2i.tools.counts import RecordCounts, fetched, imagined
from t2i.tools.memory import (
    available_memory,
    checkpoints_bytes,
    count_weights,
    enough_memory,
    figure,
    peak_memory,
    state_bytes,
)
from t2i.tools.probe import Encoders, probe_encoders, probe_forward, probe_step
from t2i.tools.scale import Lines, Rates, caching, clock, part_lines, reading_lines, set_lines, work_of
from t2i.tools.sections import Sections, load_sections
from t2i.tools.sizes import Sizes, sizes_of
from t2i.train.engine import check_settings
from t2i.train.section import Train


def plan(
    params_file: Path, base: Path, raw: Path, records: int | None, captions: int = 1, parts: int | None = None
) -> list[tuple[str, str]]:
    """Returns what a run needs, one (name, estimate) pair per line.

    Args:
        params_file: the path of params.yaml.
        base: the base model, from `fetch base`.
        raw: the folder of images and captions, from `fetch dataset`.
        records: the number of records to plan for; None: those in `raw`.
        captions: the number of captions of each of these records.
        parts: the number of parts that share the encoding; None: there are no parts.

    Raises:
        ParamsError: a section is invalid.
        ValueError: the base or the dataset is missing.
    """
    sections = load_sections(params_file)
    train, runtime, per_shard = sections.train, sections.runtime, sections.encode_captions.records_per_shard
    check_settings(train, runtime)
    family = _base(sections, base)
    dataset = imagined(records, captions, sections.fetch, per_shard) if records else fetched(raw, per_shard, runtime.storage())
    with enough_memory(runtime):
        encoders = probe_encoders(family, runtime, sections.encode_images.size_px, dataset.a_caption)
        forward = probe_forward(family, runtime, sections.evaluate.precision, encoders)
    sizes = sizes_of(dataset, _views(sections), encoders.moments, encoders.conditioning)
    trained, whole = count_weights(base / "unet", train.adapter, train.trainable)
    state, free_memory, step = state_bytes(train, runtime, trained, whole), available_memory(runtime), None
    if state < free_memory:
        with contextlib.suppress(MemoryError), enough_memory(runtime), tempfile.TemporaryDirectory() as folder:
            step = probe_step(train, runtime, family, encoders, Path(folder))
    return [
        *_records(dataset, records),
        *_disk(sections, dataset, sizes, raw.parent, trained),
        *_memory(runtime, whole, state, free_memory, timed=step is not None),
        ("steps", _steps(train, dataset)),
        *_times(sections, dataset, encoders, forward, step),
        *_at_scale(sections, dataset, sizes, encoders, step, parts),
    ]


def _records(dataset: RecordCounts, found: int | None) -> Lines:
    train, heldout = map(dataset.records, SPLITS)
    repeats = f" ({dataset.images_per_epoch:,} with repeats)" if dataset.images_per_epoch != train else ""
    yield "records", f"{train:,} train{repeats}, {heldout:,} held-out; {sum(map(dataset.captions_of, SPLITS)):,} captions"
    if found and (left_out := found - train - heldout):
        limits = ("heldout_fraction", "max_heldout_records", "max_train_records")
        yield "", f"{left_out:,} are left out by {', '.join(f'`fetch.{limit}`' for limit in limits)}"


def _steps(train: Train, dataset: RecordCounts) -> str:
    steps = train.total_steps(dataset.images_per_epoch)
    epochs = figure(steps * train.batch_size / dataset.images_per_epoch)
    return f"{steps:,} of {train.batch_size} images: {epochs} epochs"


def _base(sections: Sections, base: Path) -> Family:
    """Returns the base, after checking that it is the one that params.yaml names, and that it can be trained."""
    if not (base / "model_index.json").is_file():
        raise ValueError(f"{base}: no pipeline found; run `t2i fetch base`")
    check_origin(sections.base, base)
    check_base(sections.base.family, base)
    return load_family(sections.base.family, base, sections.train.objective.scheduler_changes())


def _disk(sections: Sections, dataset: RecordCounts, sizes: Sizes, data: Path, trained: int) -> Lines:
    yield from set_lines(sizes, dataset, data, sections.runtime.storage().most_bytes)
    kept = checkpoints_bytes(sections.train, sections.runtime, trained)
    yield "checkpoints", f"{in_bytes(kept)} in {work_root()}; {in_bytes(free_bytes(work_root()))} are free there"


def _memory(runtime: Runtime, whole: int, state: int, free: int, *, timed: bool) -> Lines:
    yield "memory", f"{in_bytes(state)} for weights, gradients, optimizer and EMA of {figure(whole / 1e6)} M parameters"
    if timed:
        yield "", f"{in_bytes(peak_memory(runtime))} peak of this process with one step; {in_bytes(free)} were free before it"
    else:
        yield "", f"{in_bytes(free)} are free, not enough for a training step"


def _views(sections: Sections) -> dict[Split, int]:
    return {split: sections.encode_images.count(split) for split in SPLITS}


def _times(sections: Sections, dataset: RecordCounts, encoders: Encoders, forward: float, step: float | None) -> Lines:
    """Yields the time of each stage: the probed operations times their number. Startup and file access are not included."""
    counts, work = {split: dataset.records(split) for split in SPLITS}, work_of(dataset, _views(sections), *SPLITS)
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
        "encode images": work.views * encoders.view_seconds,
        "encode captions": work.captions * encoders.caption_seconds,
        "train": training,
        "evaluate base": measuring,
        "evaluate model": measuring + min(sections.sweep.prompts, prompts) * swept,
    }
    whole = None if training is None else sum(filter(None, times.values()))
    for name, value in (times | {"total": whole}).items():
        yield f"time, {name}", clock(value)
    if step is not None:
        yield "speed", f"{step:.3g} s per step, {train.batch_size / step:.3g} images per second, on this machine"


def _at_scale(
    sections: Sections, dataset: RecordCounts, sizes: Sizes, encoders: Encoders, step: float | None, parts: int | None
) -> Lines:
    """Yields what concerns those who encode in parts, or train on shards that are far away."""
    train, views = sections.train, _views(sections)
    image = None if step is None else step / train.batch_size
    rates = Rates(encoders.view_seconds, encoders.caption_seconds, image, "one process on this machine")
    yield from reading_lines(sizes, dataset, train.order, rates, sections.runtime.storage().most_bytes)
    yield "caching", caching(dataset, views, train.total_steps(dataset.images_per_epoch) * train.batch_size, rates)
    if parts:
        yield from part_lines(sizes, dataset, views, parts, rates)
