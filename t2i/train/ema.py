"""EMA: the running mean of the weights that is exported, sampled and measured."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from t2i.core.params import Section


class NoRamp(Section):
    """`decay` from the first update on."""

    name: Literal["none"]

    def __call__(self, n: int) -> float:
        """Returns the largest decay of update n, counted from 1."""
        return 1.0


class ReciprocalRamp(Section):
    """`(1 + n) / (10 + n)`: 0.5 at update 8, 0.9 at 80, 0.997 at 3,000; what diffusers does without `use_ema_warmup`."""

    name: Literal["reciprocal"]

    def __call__(self, n: int) -> float:
        """Returns the largest decay of update n, counted from 1."""
        return (1 + n) / (10 + n)


class PowerRamp(Section):
    """`1 - (1 + n / inv_gamma) ** -power`; what diffusers does with `use_ema_warmup`."""

    name: Literal["power"]
    inv_gamma: float = Field(gt=0)
    power: float = Field(gt=0)

    def __call__(self, n: int) -> float:
        """Returns the largest decay of update n, counted from 1."""
        return float(1 - (1 + n / self.inv_gamma) ** -self.power)


class EmaSection(Section):
    """`train.ema`."""

    decay: float = Field(ge=0, lt=1)
    """Largest decay, which a ramp may stay below for long."""
    ramp: Annotated[NoRamp | ReciprocalRamp | PowerRamp, Field(discriminator="name")]
    """How the decay grows with the updates, up to `decay`: `none`, `reciprocal`, or `power` (`inv_gamma`, `power`)."""
    start_step: int = Field(ge=0)
    """Optimizer steps before the mean begins; until then every update copies the weights."""
    every_steps: int = Field(ge=1)
    """Optimizer steps between updates; each then uses decay ** every_steps, and there is one after the last."""


class Ema:
    """Shadow weights in fp32, with the decays of diffusers' EMAModel."""

    def __init__(self, weights: Mapping[str, Tensor], section: EmaSection, device: torch.device | str) -> None:
        self.section, self.device = section, device
        self.updates = 0
        self.shadow = {name: weight.detach().to(device, torch.float32, copy=True) for name, weight in weights.items()}

    def decay(self, updates: int, steps: int) -> float:
        """Returns the decay of an update over some steps, `updates` having gone before; the first copies the weights."""
        section = self.section
        n = max(0, updates * section.every_steps - section.start_step)
        if n == 0:
            return 0.0
        return min(section.ramp(n), section.decay) ** steps

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int, *, last: bool) -> None:
        """Moves the shadow toward the weights after optimizer step `step`, if every_steps divides it or it is the last."""
        rest = step % self.section.every_steps
        if rest and not last:
            return
        decay = self.decay(self.updates, rest or self.section.every_steps)
        now = [weights[name].detach().to(self.device, torch.float32) for name in self.shadow]
        torch._foreach_lerp_(list(self.shadow.values()), now, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Puts the shadow in the place of the weights for a while, without a copy of either where both are on one device."""
        self._exchange(weights)
        try:
            yield
        finally:
            self._exchange(weights)

    def _exchange(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            weight.data, self.shadow[name] = self.shadow[name].to(weight.device), weight.data.to(self.device)
