"""Step: a whole step of training as one compiled function: draws, loss, gradients, clipping, AdamW; and the update of the EMA.

State is named arrays in groups: `unet` (the trained weights), `exp_avg` and `exp_avg_sq` (both moments of AdamW).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from torch import Tensor
from torchax import default_env

from t2i.data.batches import Batch, Batches, Draws
from t2i.train.engines.jax.devices import Array, Devices
from t2i.train.engines.jax.network import Network
from t2i.train.objective import Objective
from t2i.train.optim import AdamW
from t2i.train.section import Train

Named = dict[str, Array]
State = dict[str, Named]


@dataclass(frozen=True)
class CompiledStep:
    """Computes steps of training."""

    section: Train
    network: Network
    objective: Objective
    batches: Batches
    devices: Devices
    images_at_once: int
    """Images per forward pass of each device."""

    def take(self, state: State, frozen: Named, stored: Any, numbers: Named) -> tuple[State, tuple[Array, Array, Array]]:
        """Returns the state after a step; and the loss, the unweighted loss, and the norm of the gradients before clipping.

        Args:
            state: before the step.
            frozen: the weights of the UNet that are not trained.
            stored: moments, conditioning and timesteps of the whole batch, as they are on disk.
            numbers: those of `step_numbers`, and the number of the step.
        """
        parts = jax.tree.map(self._in_parts, self._drawn(stored, numbers["step"]))
        graded = jax.value_and_grad(self._loss, has_aux=True)

        def add(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, graded(state["unet"], frozen, part, numbers["step"])), None

        count = len(parts["places"])
        if count == 1:  # a CPU computes convolutions in a loop many times slower
            sums = graded(state["unet"], frozen, jax.tree.map(lambda part: part[0], parts), numbers["step"])
        else:
            zeros = jax.tree.map(jnp.zeros_like, state["unet"])
            sums, _ = jax.lax.scan(add, ((jnp.zeros(()), jnp.zeros(())), zeros), parts)
        (loss, mse), gradients = jax.tree.map(lambda total: total / count, sums)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(gradient)) for gradient in gradients.values()))
        scale = jnp.minimum(1.0, self.section.max_grad_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        gradients = {name: gradient * scale for name, gradient in gradients.items()}
        return adamw(state, gradients, numbers, self.section.optimizer), (loss, mse, norm)

    def _drawn(self, stored: Any, step: Array) -> dict[str, Any]:
        """Returns a batch in fp32 with its draws and places."""
        places = jax.lax.with_sharding_constraint(jnp.arange(self.section.batch_size, dtype=jnp.int32), self.devices.of_images)
        batch = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, stored)
        with default_env():
            draws = self.batches.draws(*default_env().j2t_iso((step, places, batch["moments"], batch["timesteps"])))
            return {**batch, "places": places, "draws": default_env().t2j_iso(dict(vars(draws)))}

    def _in_parts(self, whole: Array) -> Array:
        """Divides an array [images, ...] into [parts, images, ...] without moving an image to another device."""
        by_device = whole.reshape(len(self.devices), -1, self.images_at_once, *whole.shape[1:])
        parts = by_device.swapaxes(0, 1)
        return self.devices.of_parts(parts.reshape(parts.shape[0], -1, *whole.shape[1:]))

    def _loss(self, trained: Named, frozen: Named, part: dict[str, Any], step: Array) -> tuple[Array, Array]:
        """Returns the loss and the unweighted loss of a part of a batch."""
        with default_env():
            given = default_env().j2t_iso(part)
            batch = Batch(given["moments"], given["conditioning"], Draws(**given["draws"]))
            self.section.adapter.place(self.network.unet, self.section.seed, default_env().j2t_iso(step), given["places"])
            losses: tuple[Tensor, Tensor] = self.objective.loss(self.network(frozen | trained), batch)
            loss, mse = default_env().t2j_iso(losses)
        return loss, mse


def step_numbers(section: AdamW, rate: float, count: int) -> dict[str, float]:
    """Returns what AdamW needs at its update `count`, counted from 1, computed in double precision."""
    return {
        "kept": 1 - rate * section.weight_decay,
        "rate": rate / (1 - section.beta1**count),
        "root": (1 - section.beta2**count) ** 0.5,
    }


def adamw(state: State, gradients: Named, numbers: Mapping[str, Any], section: AdamW) -> State:
    """Returns the state after an update by AdamW, as torch.optim.AdamW computes it."""

    def updated(weight: Array, gradient: Array, mean: Array, square: Array) -> tuple[Array, Array, Array]:
        mean = mean + (1 - section.beta1) * (gradient - mean)
        square = section.beta2 * square + (1 - section.beta2) * gradient * gradient
        step = numbers["rate"] * mean / (jnp.sqrt(square) / numbers["root"] + section.epsilon)
        return numbers["kept"] * weight - step, mean, square

    groups = ("unet", "exp_avg", "exp_avg_sq")
    found = {
        n: updated(weight, gradients[n], state["exp_avg"][n], state["exp_avg_sq"][n]) for n, weight in state["unet"].items()
    }
    return {group: {name: its[at] for name, its in found.items()} for at, group in enumerate(groups)}


def averaged(shadow: Named, weights: Named, amount: Array) -> Named:
    """Returns `shadow + amount (weights - shadow)`, exactly the weights if the amount is 1."""

    def between(old: Array, new: Array) -> Array:
        return jnp.where(amount < 0.5, old + amount * (new - old), new - (new - old) * (1 - amount))

    return {name: between(old, weights[name]) for name, old in shadow.items()}
