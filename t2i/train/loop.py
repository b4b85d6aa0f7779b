"""Verb: fine-tune the UNet from cached moments and embeddings; the VAE is loaded for a tracker's pictures alone."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from t2i.core.files import (
    digest_of,
    fingerprint,
    fresh,
    sha256_of,
    size_of,
    source_digest,
    to_csv,
    work_folder,
    write_json,
    write_text,
)
from t2i.core.locks import locked
from t2i.core.params import Params, Regex
from t2i.core.signals import Interrupt
from t2i.data.batches import CachedRecords, micro_batches
from t2i.model.family import Family
from t2i.model.precision import Precision
from t2i.model.runtime import Runtime
from t2i.train import checkpoint
from t2i.train.card import write_card
from t2i.train.ema import Ema, EmaParams
from t2i.train.execution import Overflows, make_accelerator, prepared_unet
from t2i.train.history import COLUMNS, History
from t2i.train.objective import Objective, ObjectiveParams, accumulate_gradients
from t2i.train.optim import AdamWParams, Schedule, learning_rate, make_optimizer, trainable
from t2i.train.state import TrainingState
from t2i.train.trackers import Trackers, check_installed
from t2i.train.validation import Validator


class Train(Params):
    """Section `train`: everything that decides what comes out of training."""

    init: Literal["base", "random"]
    """`base`: fine-tune the base's weights. `random`: train the same configuration from scratch."""
    trainable: Regex
    """Regular expression: parameters of the UNet in whose name it is found are trained, the others stay as they are."""
    steps: int | None = Field(ge=1)
    """Optimizer steps; or null, with `epochs`."""
    epochs: int | None = Field(ge=1)
    """Visits of each record; or null, with `steps`."""
    batch_size: int = Field(ge=1)
    """Images of an optimizer step, over all processes and micro-batches."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(ge=0)
    """Steps of linear warm-up from 0."""
    scale_learning_rate: bool
    """Whether the peak is `learning_rate` times `batch_size`: the images of a step, over all processes."""
    schedule: Schedule
    """After warm-up: constant, linear, cosine, cosine_with_restarts (`cycles`), polynomial (`power`, `end_factor`)."""
    optimizer: AdamWParams
    """The optimizer by `name`, with its parameters."""
    max_grad_norm: float = Field(gt=0)
    """Norm that the gradients are clipped to."""
    objective: ObjectiveParams
    """What is predicted, from which noise, and how the errors are weighted."""
    use_flips: bool
    """Whether flipped views are drawn too, where `encode.images.flip` stored them: with and without need no other cache."""
    prompt_dropout: float = Field(ge=0, le=1)
    """Share of the images trained on with the empty prompt, which classifier-free guidance needs."""
    precision: Precision
    """What the UNet computes in; weights, noising and loss stay fp32."""
    ema: EmaParams
    """The running mean of the weights, which is what is exported."""
    seed: int
    """Decides order, noise, timesteps, and random weights."""

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set one of `steps` and `epochs`, and null for the other")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at the end of warm-up."""
        return self.learning_rate * (self.batch_size if self.scale_learning_rate else 1)

    def total_steps(self, records: int) -> int:
        """Returns the number of optimizer steps; that of `epochs` is rounded up."""
        return self.steps or -(-(self.epochs or 0) * records // self.batch_size)


@dataclass(frozen=True)
class Inputs:
    """What training reads."""

    base: Path
    latents: Path
    embeds: Path
    validation_prompts: Path
    dataset: Path
    """dataset.json, for the model card."""


@dataclass(frozen=True)
class Outputs:
    """What training writes."""

    model: Path
    """A complete pipeline, with the EMA's weights."""
    validation: Path
    """What was measured and drawn on the way."""
    report: Path
    """Folder for the figures."""
    trackers: Path
    """Folder for what `runtime.trackers` write."""


def train(params: Train, runtime: Runtime, family: Family, inputs: Inputs, outputs: Outputs) -> dict[str, Any]:
    """Trains, or goes on from the newest checkpoint, and writes a complete pipeline with the EMA weights.

    Returns:
        Metrics: steps, and the mean losses of the last tenth of them.

    Raises:
        SystemExit: 130 or 143 when interrupted, once a checkpoint is on disk.
        ValueError: where the caches do not fit each other or the UNet, or the run does not converge.
    """
    check_installed(runtime.trackers)
    made_by = _made_by(params, inputs)
    work = work_folder("train", fingerprint(made_by, source_digest()))
    accelerator = make_accelerator(params.precision, runtime, logs := outputs.trackers / work.name)
    with locked(work) if accelerator.is_main_process else contextlib.nullcontext():
        if accelerator.is_main_process:
            checkpoint.make_room(work, restart=os.environ.get("T2I_RESUME") == "never")
        accelerator.wait_for_everyone()
        trackers = Trackers(accelerator, family, runtime.tracker_project, logs, params.model_dump())
        caches = (inputs.latents, inputs.embeds, inputs.validation_prompts)
        validator = Validator(runtime, params.precision, family, *caches, work, trackers)
        ema, history = _optimize(params, runtime, family, inputs, work, accelerator, validator)
        trackers.finish()
        if not accelerator.is_main_process:
            return {}
        with fresh(outputs.model, size_of(inputs.base)) as folder:
            family.export(ema.shadow, folder)
            write_card(folder, inputs.dataset, made_by)
        with fresh(outputs.validation) as folder:
            shutil.copytree(validator.folder, folder, dirs_exist_ok=True)
        write_text(outputs.report / "history.csv", history.csv(runtime.log_every_steps))
        write_text(outputs.report / "validation.csv", to_csv(validator.rows()))
        write_json(outputs.report / "metrics.json", metrics := history.last_tenth())
        checkpoint.finish(work)
    return metrics


def _optimize(
    params: Train, runtime: Runtime, family: Family, inputs: Inputs, work: Path, accelerator: Any, validator: Validator
) -> tuple[Ema, History]:
    """The training loop, from the newest checkpoint on."""
    records = CachedRecords(inputs.latents, inputs.embeds, "train")
    objective = Objective(params.objective, family, accelerator.device)
    sampler = objective.sampler(records, params.batch_size, params.use_flips, params.prompt_dropout, params.seed)
    shares = micro_batches(params.batch_size, accelerator.process_index, accelerator.num_processes, runtime.micro_batch_size)
    steps = params.total_steps(len(records))

    torch.manual_seed(params.seed)
    bare = prepared_unet(family, runtime, random=params.init == "random").to(accelerator.device)
    family.check_fit(bare, records.moments(0), records.conditioning(0))
    weights, trained = dict(bare.named_parameters()), trainable(bare, params.trainable)
    ema = Ema(weights, params.ema, runtime.ema_device or accelerator.device)
    adamw = make_optimizer(trained, params.optimizer)
    state = TrainingState(bare, ema, adamw, accelerator.scaler, History())
    state.restore(work, discard_damaged=accelerator.is_main_process)
    unet, optimizer = accelerator.prepare(bare, adamw)

    progress = _progress(state.step, steps, trained, weights.values(), shown=accelerator.is_main_process)
    saved_at, overflows = time.monotonic(), Overflows(accelerator.scaler)
    with Interrupt() as interrupt, progress:
        if accelerator.is_main_process:
            validator.run(state.step, steps, bare, ema)
        while state.step < steps:
            rate = learning_rate(state.step, params.peak_learning_rate, params.warmup_steps, steps, params.schedule)
            for group in adamw.param_groups:
                group["lr"] = rate
            loss, mse = accumulate_gradients(accelerator, unet, objective, sampler, state.step, shares)
            grad_norm = accelerator.clip_grad_norm_(unet.parameters(), params.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if overflows.met(grad_norm):
                continue
            state.step += 1
            ema.update(weights, state.step, last=state.step == steps)

            stopping: float = interrupt.signal or 0
            if accelerator.num_processes > 1:  # all stop after the same step
                loss, mse, agreed = accelerator.reduce(torch.stack([loss, mse, loss.new_tensor(stopping)]), "mean")
                stopping = agreed.item()
            state.history.append((loss, mse, grad_norm, rate))
            progress.update()
            if state.step % runtime.log_every_steps == 0:
                recent = state.history.rows()[-runtime.log_every_steps :]
                progress.set_postfix_str(_shown(recent, progress, params.batch_size))
                validator.trackers.steps(state.step, recent, COLUMNS)
            if stopping or state.step == steps or time.monotonic() - saved_at > runtime.checkpoint_every_seconds:
                if accelerator.is_main_process:
                    state.save(work, runtime.keep_checkpoints)
                saved_at = time.monotonic()
                if stopping:
                    accelerator.wait_for_everyone()  # none ends, and has the others ended, before the checkpoint is whole
            if stopping and state.step < steps:
                print(f"stopped after step {state.step} of {steps}; the same command goes on from there", file=sys.stderr)
                raise SystemExit(128 + (interrupt.signal or 15))
            if accelerator.is_main_process:
                validator.run(state.step, steps, bare, ema)
    return ema, state.history


def _progress(step: int, steps: int, trained: Iterable[Tensor], weights: Iterable[Tensor], *, shown: bool) -> Any:
    part, whole = (sum(weight.numel() for weight in some) / 1e6 for some in (trained, weights))
    desc = f"training {part:.2f} of {whole:.2f} M parameters"
    return tqdm(total=steps, initial=step, desc=desc, unit=" steps", disable=not shown)


def _shown(recent: list[list[float]], progress: Any, batch_size: int) -> str:
    loss = sum(row[0] for row in recent) / len(recent)
    return f"loss {loss:.4f}, {batch_size * (progress.format_dict['rate'] or 0):.0f} samples/s"


def _made_by(params: Train, inputs: Inputs) -> dict[str, Any]:
    """What decides the result: the fingerprint of the work, and the provenance in the model card."""
    return {
        "train": params.model_dump(),
        "base": digest_of(inputs.base),
        "latents": sha256_of(inputs.latents / "manifest.json"),
        "embeds": sha256_of(inputs.embeds / "manifest.json"),
        "torch": torch.__version__.split("+")[0],
    }
