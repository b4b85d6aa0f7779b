"""The engine `jax`: training steps that JAX compiles and divides among all devices, such as TPUs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torchax import default_env

from t2i.data.batches import Gathered
from t2i.data.cached import CachedRecords
from t2i.data.crops import Size
from t2i.data.prefetch import Prefetcher
from t2i.model.family import Family
from t2i.model.runtime import Runtime
from t2i.train.engine import Tensors
from t2i.train.engines.jax.devices import Devices, alone, tensor_of
from t2i.train.engines.jax.network import Network
from t2i.train.engines.jax.settings import check_supported, images_at_once
from t2i.train.engines.jax.step import CompiledStep, Named, State, averaged, step_numbers
from t2i.train.history import Figures
from t2i.train.objective import Objective
from t2i.train.optim import learning_rate, trainable
from t2i.train.section import Train

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch.optim.AdamW calls its moments."""


class Prepared:
    """A UNet with its optimizer, EMA and batches; `prepare` builds it.

    Args:
        step: computes the steps.
        prefetcher: gives the part of each batch that the devices of this process compute.
        trained: the weights that are trained, by name.
        rows: images per forward pass in evaluation.
    """

    def __init__(self, step: CompiledStep, prefetcher: Prefetcher, trained: dict[str, nn.Parameter], rows: int) -> None:
        self.section, self.unet, self.devices = step.section, step.network.unet, step.devices
        self.objective, self._network, self._prefetcher, self._rows = step.objective, step.network, prefetcher, rows
        self.records, self.images_per_epoch = len(step.batches.records), len(step.batches.epoch)
        self.steps = self.section.total_steps(self.images_per_epoch)
        self.processes, self.device = len(self.devices), torch.device("cpu")
        others = {**dict(self.unet.named_parameters()), **dict(self.unet.named_buffers())}
        self._frozen = self.devices.copied({name: tensor for name, tensor in others.items() if name not in trained})
        zeros = {name: torch.zeros_like(weight) for name, weight in trained.items()}
        self._state: State = {group: self.devices.copied(zeros) for group in _MOMENTS}
        self._state["unet"] = self.devices.copied(trained)
        self._shadow: Named = self.devices.copied(trained)
        self._updates = self._taken = 0
        self._take = jax.jit(step.take, donate_argnums=0)
        self._average = jax.jit(averaged, donate_argnums=0)
        self._checks: list[Callable[[], None]] = []

    def __str__(self) -> str:
        """Returns the number of trained parameters, the numbers of records and repeats, and the devices, in words."""
        trained = sum(weight.size for weight in self._state["unet"].values()) / 1e6
        whole = trained + sum(weight.size for weight in self._frozen.values()) / 1e6
        repeated = f" ({self.images_per_epoch} with repeats)" if self.images_per_epoch != self.records else ""
        return f"{trained:.2f} of {whole:.2f} M parameters on {self.records} records{repeated}, {self.devices}"

    def take_step(self, step: int) -> Figures:
        """Takes one optimizer step, counted from 0; the next batch is gathered while the devices compute."""
        if jax.process_count() == 1:
            self._check()
        section = self.section
        rate = learning_rate(step, section.peak_learning_rate, section.warmup_steps, self.steps, section.schedule)
        numbers: dict[str, Any] = {n: np.float32(x) for n, x in step_numbers(section.optimizer, rate, step + 1).items()}
        stored = self._stored(self._prefetcher.gathered(step, 0))
        self._state, (loss, mse, norm) = self._take(self._state, self._frozen, stored, numbers | {"step": np.int32(step)})
        self._taken = step + 1
        decay = section.ema.decay_at(step + 1, self._updates, last=step + 1 == self.steps)
        if decay is not None:
            self._shadow = self._average(self._shadow, self._state["unet"], np.float32(1 - decay))
            self._updates += 1
        return Figures(loss, mse, norm, rate)

    def _stored(self, gathered: Gathered) -> dict[str, Any]:
        """Copies a part of a batch to the devices, in the types on disk."""
        own = {"moments": gathered.moments, "timesteps": gathered.timesteps}
        return self.devices.divided(own) | {"conditioning": self.devices.divided(gathered.conditioning)}

    def state(self) -> Tensors:
        """Returns all state that a step changes, for a checkpoint."""
        optimizer = {f"{name}/step": torch.tensor(float(self._taken)) for name in self._state["unet"]}
        for moment in _MOMENTS:
            optimizer |= {f"{name}/{moment}": tensor_of(array) for name, array in self._state[moment].items()}
        return {
            "unet": {name: tensor_of(array) for name, array in self._state["unet"].items()},
            "ema": self.averaged,
            "optimizer": optimizer,
            "counts": {"ema_updates": torch.tensor(self._updates)},
        }

    def restore(self, state: Tensors) -> None:
        """Loads what `state` returned, in this run or another one with the same parameters."""
        names = list(self._state["unet"])
        self._state = {"unet": self.devices.copied({name: state["unet"][name] for name in names})}
        for moment in _MOMENTS:
            self._state[moment] = self.devices.copied({name: state["optimizer"][f"{name}/{moment}"] for name in names})
        self._shadow = self.devices.copied({name: state["ema"][name] for name in names})
        self._updates = int(state["counts"]["ema_updates"])
        self._taken = int(state["optimizer"][f"{names[0]}/step"])

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The EMA weights by name."""
        return {name: tensor_of(array) for name, array in self._shadow.items()}

    @contextmanager
    def evaluated(self, *, averaged: bool) -> Iterator[nn.Module]:
        """Yields the UNet in evaluation mode, with its own weights or, if `averaged`, the EMA weights.

        It takes and gives tensors on the CPU, and computes on the first device of this process.
        """
        weights = alone(self._frozen | (self._shadow if averaged else self._state["unet"]))
        lent = self._network.lent(weights, self._rows)
        lent.eval()
        hook = lent.register_forward_pre_hook(lambda *_: self._check())
        try:
            yield lent
        finally:
            hook.remove()
            lent.train()

    @contextmanager
    def before_each_forward(self, check: Callable[[], None]) -> Iterator[None]:
        """Calls `check` before each step and each forward pass of an evaluation: its exception ends them early.

        With several processes, a training step is never given up, because the others wait for its gradients.
        """
        self._checks.append(check)
        try:
            yield
        finally:
            self._checks.remove(check)

    def _check(self) -> None:
        for check in self._checks:
            check()

    @property
    def size_px(self) -> Size:
        """Height and width of the images that it learns from."""
        return self.objective.size_px(self._prefetcher.batches.records)

    def close(self) -> None:
        """Ends the prefetching."""
        self._prefetcher.close()


def prepare(section: Train, runtime: Runtime, family: Family, records: CachedRecords) -> Prepared:
    """Builds everything that a training step needs, without taking a step.

    Raises:
        ValueError: if the records do not fit the UNet, or the engine does not support the settings.
    """
    check_supported(section, runtime)
    devices = Devices(runtime)
    with default_env():
        objective = Objective(section.objective, family, "jax")
    batches = objective.batches(
        records, section.order, section.batch_size, section.use_flips, section.prompt_dropout, section.seed
    )
    torch.manual_seed(section.seed)
    unet: Any = family.load_unet(random=section.init == "random").train()
    if runtime.attention == "eager":
        from diffusers.models.attention_processor import AttnProcessor

        unet.set_attn_processor(AttnProcessor())
    family.check_fit(unet, records.moments(0), records.conditioning(0, family.view_conditioning))
    trained = section.adapter.inject(unet, section.precision) or trainable(unet, section.trainable)
    network = Network(unet, section.precision, checkpointing=runtime.gradient_checkpointing)
    at_once = images_at_once(section, runtime, len(devices))
    step = CompiledStep(section, network, objective, batches, devices, at_once)
    return Prepared(step, Prefetcher(batches, [devices.places(section.batch_size)], "cpu"), trained, runtime.encode_batch_size)
