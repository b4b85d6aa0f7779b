"""The engine `torch`: training steps of PyTorch, with Accelerate."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from t2i.data.batches import micro_batches
from t2i.data.cached import CachedRecords
from t2i.data.crops import Size
from t2i.data.prefetch import Prefetcher
from t2i.model.family import Family
from t2i.model.runtime import Runtime, device_in_words
from t2i.train.ema import Ema
from t2i.train.engine import Tensors
from t2i.train.execution import Overflows, make_accelerator, prepared_unet
from t2i.train.history import Figures
from t2i.train.objective import Objective
from t2i.train.optim import learning_rate, make_optimizer, optimizer_tensors, restore_optimizer, trainable
from t2i.train.section import Train


@dataclass(frozen=True)
class Prepared:
    """A UNet with its optimizer, EMA and batches; `prepare` builds it."""

    section: Train
    records: int
    images_per_epoch: int
    """The records, each as often as it is repeated."""
    steps: int
    """Number of optimizer steps of the whole run."""
    accelerator: Any
    objective: Objective
    prefetcher: Prefetcher
    """Gives the micro-batches of this process."""
    unet: nn.Module
    """The UNet of this process, not wrapped."""
    wrapped: nn.Module
    """The same UNet, wrapped by Accelerate."""
    adamw: torch.optim.Optimizer
    optimizer: Any
    """The same optimizer, wrapped by Accelerate."""
    trained: dict[str, nn.Parameter]
    ema: Ema
    overflows: Overflows

    def __str__(self) -> str:
        """Returns the number of trained parameters, the numbers of records and repeats, and the device, in words."""
        trained, whole = (sum(w.numel() for w in weights) / 1e6 for weights in (self.trained.values(), self.unet.parameters()))
        records = f"{self.records} records" + (
            f" ({self.images_per_epoch} with repeats)" if self.images_per_epoch != self.records else ""
        )
        return f"{trained:.2f} of {whole:.2f} M parameters on {records}, {device_in_words(self.device)}"

    def take_step(self, step: int) -> Figures | None:
        """Takes one optimizer step.

        Args:
            step: number of the step, counted from 0.

        Returns:
            The figures of the step, still on the device; None if the fp16 gradients overflowed and the step must be repeated.
        """
        section = self.section
        rate = learning_rate(step, section.peak_learning_rate, section.warmup_steps, self.steps, section.schedule)
        for group in self.adamw.param_groups:
            group["lr"] = rate

        loss, mse = self._accumulate_gradients(step)
        grad_norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), section.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.overflows.met(grad_norm):
            return None

        self.ema.update(self.trained, step + 1, last=step + 1 == self.steps)
        if self.accelerator.num_processes > 1:
            loss, mse = self.accelerator.reduce(torch.stack([loss, mse]), "mean")
        return Figures(loss, mse, grad_norm, rate)

    def _accumulate_gradients(self, step: int) -> tuple[Tensor, Tensor]:
        """Accumulates the gradients of the micro-batches, weighted by their number of images; returns the loss and the MSE."""
        loss = mse = torch.zeros((), device=self.accelerator.device)
        own = sum(map(len, self.prefetcher.places))
        for number, places in enumerate(self.prefetcher.places):
            weight = len(places) / own
            batch = self.prefetcher.batch(step, number)
            self.section.adapter.place(self.unet, self.section.seed, step, places)
            last = places is self.prefetcher.places[-1]
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                weighted, unweighted = self.objective.loss(self.wrapped, batch)
                self.accelerator.backward(weight * weighted)
            loss, mse = loss + weight * weighted.detach(), mse + weight * unweighted
        return loss, mse

    def state(self) -> Tensors:
        """Returns all state that a step changes, for a checkpoint."""
        scaler = {} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
        counts = {"ema_updates": self.ema.updates} | {f"scaler/{name}": value for name, value in scaler.items()}
        return {
            "unet": dict(self.trained),
            "ema": self.ema.shadow,
            "optimizer": optimizer_tensors(self.adamw, self.trained),
            "counts": {name: torch.tensor(value, dtype=_wide(value)) for name, value in counts.items()},
        }

    def restore(self, state: Tensors) -> None:
        """Loads what `state` returned, in this run or another one with the same parameters."""
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(state["unet"][name])
        self.ema.shadow = {name: tensor.to(self.ema.device, copy=True) for name, tensor in state["ema"].items()}
        restore_optimizer(self.adamw, self.trained, state["optimizer"])
        counts = {name: tensor.item() for name, tensor in state["counts"].items()}
        self.ema.updates = int(counts.pop("ema_updates"))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict({name.removeprefix("scaler/"): value for name, value in counts.items()})

    @contextmanager
    def evaluated(self, *, averaged: bool) -> Iterator[nn.Module]:
        """Yields the UNet in evaluation mode, with its own weights or, if `averaged`, the EMA weights."""
        self.unet.eval()
        try:
            with self.ema.applied(self.trained) if averaged else contextlib.nullcontext():
                yield self.unet
        finally:
            self.unet.train()

    @contextmanager
    def before_each_forward(self, check: Callable[[], None]) -> Iterator[None]:
        """Calls `check` before each call of the UNet that may be given up: its exception ends a step or a validation early.

        Also calls it while such a step waits for data. With several processes, a training step is never given up, because the
        others wait for its gradients.
        """

        def hook(unet: nn.Module, inputs: object) -> None:
            del inputs
            if self.processes == 1 or not unet.training:
                check()

        if self.processes == 1:
            self.prefetcher.while_waiting = check
        handle = self.unet.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The EMA weights by name."""
        return self.ema.shadow

    @property
    def size_px(self) -> Size:
        """Height and width of the images that it learns from."""
        return self.objective.size_px(self.prefetcher.batches.records)

    @property
    def processes(self) -> int:
        """The number of processes that train together."""
        processes: int = self.accelerator.num_processes
        return processes

    def close(self) -> None:
        """Ends the prefetching, and on GPUs the process group, as NCCL requires. On CPUs, the group ends with the processes."""
        self.prefetcher.close()
        if self.device.type != "cpu":
            self.accelerator.end_training()

    @property
    def device(self) -> torch.device:
        """The device of the UNet."""
        device: torch.device = self.accelerator.device
        return device


def prepare(section: Train, runtime: Runtime, family: Family, records: CachedRecords) -> Prepared:
    """Builds everything that a training step needs, without taking a step.

    Raises:
        ValueError: if the records do not fit the UNet, or this machine does not support what `runtime` sets.
    """
    accelerator = make_accelerator(section.precision, runtime)
    objective = Objective(section.objective, family, accelerator.device)
    batches = objective.batches(
        records, section.order, section.batch_size, section.use_flips, section.prompt_dropout, section.seed
    )
    rank, processes = accelerator.process_index, accelerator.num_processes
    places = micro_batches(section.batch_size, rank, processes, runtime.micro_batch_size)

    torch.manual_seed(section.seed)
    unet = prepared_unet(family, runtime, section.precision, random=section.init == "random")
    family.check_fit(unet, records.moments(0), records.conditioning(0, family.view_conditioning))
    trained = section.adapter.inject(unet, section.precision) or trainable(unet, section.trainable)
    unet.to(accelerator.device)
    ema = Ema(trained, section.ema, runtime.ema_device or accelerator.device)
    adamw = make_optimizer(trained.values(), section.optimizer)
    wrapped, optimizer = accelerator.prepare(unet, adamw)
    return Prepared(
        section=section,
        records=len(records),
        images_per_epoch=len(batches.epoch),
        steps=section.total_steps(len(batches.epoch)),
        accelerator=accelerator,
        objective=objective,
        prefetcher=Prefetcher(batches, places, accelerator.device),
        unet=unet,
        wrapped=wrapped,
        adamw=adamw,
        optimizer=optimizer,
        trained=trained,
        ema=ema,
        overflows=Overflows(accelerator.scaler),
    )


def _wide(value: float | int) -> torch.dtype:
    return torch.int64 if isinstance(value, int) else torch.float64
