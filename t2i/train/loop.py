"""Stage `train`: fine-tunes the UNet on cached moments and embeddings; loads no text encoder, and the VAE only for the card."""

import contextlib
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from t2i.core.files import fresh, size_of, to_csv, work_folder, work_root, write_json, write_text
from t2i.core.locks import locked
from t2i.core.signals import Interrupt, Interrupted
from t2i.data.cached import CachedRecords
from t2i.data.digests import code_digest, digest_of, fingerprint, sha256_of
from t2i.data.records import SPLITS
from t2i.data.storage import Storage
from t2i.model.adapter import Facts, deciding_files
from t2i.model.checks import in_one_line
from t2i.model.family import Family, file_of
from t2i.model.layout import read_object
from t2i.model.runtime import Runtime
from t2i.train import checkpoint
from t2i.train.card import Pictures, write_card
from t2i.train.change import say_if_unchanged
from t2i.train.checkpoint import Checkpoint
from t2i.train.engine import Prepared, prepare
from t2i.train.execution import take_over_threads
from t2i.train.group import Group
from t2i.train.history import COLUMNS, History
from t2i.train.pace import Pace, in_words, progress_bar
from t2i.train.section import Train
from t2i.train.trackers import Trackers, flat
from t2i.train.validation import Validator
from t2i.train.verification import Verification

DECIDED_BY = (
    *(f"data/{name}.py" for name in ("batches", "cached", "chance", "counter", "crops", "index", "members", "order")),
    *(f"data/{name}.py" for name in ("pixels", "prefetch", "reader", "records")),
    *(f"model/{name}.py" for name in ("adapter", "denoising", "diffusion", "family", "latents", "precision", "prediction")),
    *(f"model/{name}.py" for name in ("pretrained", "schedule")),
    *(f"train/{name}.py" for name in ("checkpoint", "ema", "engines/torch/engine", "execution", "history", "loop")),
    *(f"train/{name}.py" for name in ("objective", "optim", "section", "timesteps", "validation", "weighting")),
)
"""The code that determines the contents of a checkpoint: a run only resumes from checkpoints of the same code."""


@dataclass(frozen=True)
class Inputs:
    """What training reads."""

    base: Path
    latents: Path
    embeds: Path
    validation_prompts: Path
    dataset: Path
    """dataset.json, for the model card."""
    storage: Storage


@dataclass(frozen=True)
class Outputs:
    """The paths that training writes."""

    model: Path
    """A complete pipeline, or the adapter, with the EMA weights."""
    validation: Path
    """Denoising errors and sampled latents of every validation."""
    report: Path
    """Folder for metrics.json, history.csv and validation.csv."""
    trackers: Path
    """Folder for the files of `runtime.trackers`."""


def train(section: Train, runtime: Runtime, family: Family, inputs: Inputs, outputs: Outputs, group: Group) -> dict[str, Any]:
    """Trains from the start or from the newest checkpoint, and writes the EMA weights as a complete pipeline or an adapter.

    Only the first process of the group writes, and reads checkpoints; the others need the base and the caches.

    Returns:
        Metrics: the number of steps and the mean losses of the last tenth of them. Empty in all processes but the first.

    Raises:
        SystemExit: with code 130 or 143 after SIGINT or SIGTERM, once a checkpoint is on disk.
        StoreLost: if no shard comes from the store any more, once a checkpoint is on disk.
        ValueError: if the caches do not match each other or the UNet, the loss is not finite, or the processes differ.
    """
    first, made_by = group.first, _made_by(section, inputs)
    decided_by = _agreed(made_by, section, family, group)
    work = work_folder("train", decided_by) if first else work_root() / decided_by
    with locked(work) if first else contextlib.nullcontext(), contextlib.closing(inputs.storage):
        if first:
            checkpoint.make_room(work, restart=os.environ.get("T2I_RESUME") == "never")
        folders = (inputs.latents, inputs.embeds) if runtime.verify_shards and first else ()
        verification = Verification(work, folders, inputs.storage)
        records = {split: CachedRecords(inputs.latents, inputs.embeds, split, inputs.storage) for split in SPLITS}
        prepared = prepare(section, runtime, family, records["train"])
        names = runtime.trackers if first else []
        trackers = Trackers(names, family, runtime.tracker_project, outputs.trackers / work.name, section.model_dump())
        validator = Validator(runtime, section.precision, family, records, inputs.validation_prompts, work)
        history = optimize(prepared, runtime, validator, trackers, verification, group)
        trackers.finish()
        prepared.close()
        if not first:
            return {}
        _export(section, prepared, family, inputs, outputs.model, made_by, _pictures(validator, prepared.steps))
        with fresh(outputs.validation) as folder:
            shutil.copytree(validator.folder, folder, dirs_exist_ok=True)
        write_text(outputs.report / "history.csv", history.csv(runtime.log_every_steps))
        write_text(outputs.report / "validation.csv", to_csv(validator.rows()))
        write_json(outputs.report / "metrics.json", metrics := history.last_tenth())
        checkpoint.finish(work)
    return metrics


def _agreed(made_by: dict[str, Any], section: Train, family: Family, group: Group) -> str:
    """Returns the fingerprint of what decides the result. Raises a ValueError if processes differ in it."""
    code = code_digest([*DECIDED_BY, file_of(family), *deciding_files(section.adapter)])
    group.compare("made by", flat(made_by) | {"code of t2i": code})
    return fingerprint(made_by, code)


def optimize(
    prepared: Prepared, runtime: Runtime, validator: Validator, trackers: Trackers, verification: Verification, group: Group
) -> History:
    """Runs the training loop, starting from the newest checkpoint; returns the history of all steps."""
    first, work, steps, batch_size = group.first, validator.work, prepared.steps, prepared.section.batch_size
    step, history = _resume(prepared, work, group)
    if first:
        print(f"training {prepared}: steps {step} to {steps}, {batch_size} images each; checkpoints in {work}", file=sys.stderr)
        for note in prepared.section.notes(steps):
            print(f"note: {note}", file=sys.stderr)
    progress, pace = progress_bar(step, steps, shown=first), Pace(step)

    def validate() -> None:
        with contextlib.suppress(Interrupted), pace.paused():
            if first and (found := validator.run(step, prepared)):
                trackers.validation(step, found, interrupt.check)
                validator.keep(step, found)

    def save() -> None:
        with pace.paused():
            if first and step:
                tensors = prepared.state() | {"history": {"rows": history.tensor()}}
                made = Checkpoint(step, torch.get_num_threads(), prepared.processes, tensors)
                checkpoint.save(work, made, runtime.keep_checkpoints, spared=verification.spared())

    saved_at = time.monotonic()
    with Interrupt() as interrupt, progress, prepared.before_each_forward(interrupt.check), checkpoint.saved_if_lost(save):
        validator.records["train"].storage.while_waiting = interrupt.check
        while True:
            verification.check()
            validate()
            if stopping := group.agree(interrupt.signal or 0):
                save()
                group.wait()  # a process that ends early would end the others before the checkpoint is complete
                print(f"stopped after step {step} of {steps}; run the same command to resume", file=sys.stderr)
                raise SystemExit(128 + stopping)
            if step == steps:
                with contextlib.suppress(Interrupted):
                    verification.wait(interrupt.check)
                    return history
                raise SystemExit(128 + (interrupt.signal or 0))

            figures = None
            with contextlib.suppress(Interrupted):
                figures = prepared.take_step(step)
            if figures is None:  # interrupted, or the fp16 gradients overflowed: repeat the step
                continue
            step += 1
            history.append(figures)
            progress.update()

            if step % runtime.log_every_steps == 0:
                recent = history.rows()[-runtime.log_every_steps :]  # waits for the device
                progress.set_postfix_str(in_words(recent, pace.steps_per_second(step), batch_size))
                trackers.steps(step, recent, COLUMNS)
            if step == steps or time.monotonic() - saved_at > runtime.checkpoint_every_seconds:
                save()
                saved_at = time.monotonic()


def _resume(prepared: Prepared, work: Path, group: Group) -> tuple[int, History]:
    """Restores the newest undamaged checkpoint of the first process; returns its step and history, or 0 and an empty one."""
    found = checkpoint.shared(checkpoint.load_newest(work, discard_damaged=True) if group.first else None, group)
    if found is None:
        return 0, History()
    prepared.restore(found.tensors)
    if found.processes == prepared.processes:
        take_over_threads(found.threads, prepared.device)
    elif group.first:
        print(f"the checkpoint was made by {found.processes} processes: the last digits will differ", file=sys.stderr)
    return found.step, History(found.tensors["history"]["rows"])


def _export(
    section: Train,
    prepared: Prepared,
    family: Family,
    inputs: Inputs,
    out: Path,
    made_by: dict[str, Any],
    pictures: Pictures,
) -> None:
    """Writes the EMA weights as a pipeline or an adapter, with its card; says so if they hardly differ from the base."""
    weights, adapter = prepared.averaged, section.adapter
    if section.init == "base":
        say_if_unchanged(inputs.base / "unet", adapter.change(weights))
    size = 2 * sum(weight.nbytes for weight in weights.values()) if adapter.keeps_base else size_of(inputs.base)
    with fresh(out, size) as folder:
        facts = _facts(section, prepared, inputs)
        use = adapter.export(prepared.unet, weights, family, facts, folder, section.export_dtype)
        write_card(folder, use, facts, made_by, pictures)


def _pictures(validator: Validator, step: int) -> Pictures:
    """Returns what the model draws; nothing if that fails, since the model is worth more than its card."""
    try:
        return validator.pictures(step)
    except (RuntimeError, MemoryError) as error:
        print(f"note: the model card has no pictures: they could not be decoded ({in_one_line(error)})", file=sys.stderr)
        return []


def _facts(section: Train, prepared: Prepared, inputs: Inputs) -> Facts:
    """Returns what the exported model states about this run."""
    origin = inputs.base / "source.json"
    return Facts(
        train=section.model_dump() | {"learning_rate": section.peak_learning_rate},
        steps=prepared.steps,
        images=prepared.records,
        size_px=prepared.size_px,
        scheduler_changes=section.objective.scheduler_changes(),
        base=read_object(origin) if origin.is_file() else {},
        dataset=read_object(inputs.dataset),
    )


def _made_by(section: Train, inputs: Inputs) -> dict[str, Any]:
    """Returns what determines the result, for the fingerprint of the work folder and for the model card."""
    return {
        "train": section.model_dump(exclude={"export_dtype"}),
        "base": digest_of(inputs.base),
        "latents": sha256_of(inputs.latents / "manifest.json"),
        "embeds": sha256_of(inputs.embeds / "manifest.json"),
        "torch": torch.__version__.split("+")[0],
    }
