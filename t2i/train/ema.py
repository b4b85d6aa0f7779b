"""EMA: the exponential moving average of the weights, which is exported, sampled and measured."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from t2i.core.params import Section


class NoRamp(Section):
    """No ramp: `decay` applies from the first update after the copy."""

    name: Literal["none"]

    def __call__(self, n: int) -> float:
        """Returns the upper limit of the decay n optimizer steps after `start_step`."""
        return 1.0


class ReciprocalRamp(Section):
    """`(1 + n) / (10 + n)`: 0.5 at step 8, 0.9 at 80, 0.997 at 3,000; as diffusers without `use_ema_warmup`."""

    name: Literal["reciprocal"]

    def __call__(self, n: int) -> float:
        """Returns the upper limit of the decay n optimizer steps after `start_step`."""
        return (1 + n) / (10 + n)


class PowerRamp(Section):
    """`1 - (1 + n / inv_gamma) ** -power`; as diffusers with `use_ema_warmup`."""

    name: Literal["power"]
    inv_gamma: float = Field(gt=0)
    power: float = Field(gt=0)

    def __call__(self, n: int) -> float:
        """Returns the upper limit of the decay n optimizer steps after `start_step`."""
        return float(1 - (1 + n / self.inv_gamma) ** -self.power)


class EmaSection(Section):
    """Section `train.ema`."""

    decay: float = Field(ge=0, lt=1)
    """Final decay. With a ramp, the decay can stay below it for many steps."""
    ramp: Annotated[NoRamp | ReciprocalRamp | PowerRamp, Field(discriminator="name")]
    """How the decay grows up to `decay`: `none`, `reciprocal`, or `power` (with `inv_gamma` and `power`)."""
    start_step: int = Field(ge=0)
    """Optimizer steps before averaging starts; until then every update copies the weights."""
    every_steps: int = Field(ge=1)
    """Optimizer steps between updates. Each update uses `decay ** every_steps`; the last step always gets an update."""

    def decay_after(self, updates: int, steps: int) -> float:
        """Returns the decay of an update that covers `steps` steps, after `updates` earlier ones; 0 copies the weights."""
        n = max(0, updates * self.every_steps - self.start_step)
        return 0.0 if n == 0 else min(self.ramp(n), self.decay) ** steps

    def decay_at(self, step: int, updates: int, *, last: bool) -> float | None:
        """Returns the decay after optimizer step `step`, counted from 1, and `updates` earlier updates; None: no update.

        There is an update if `every_steps` divides the step, or if it is the last one.
        """
        rest = step % self.every_steps
        return None if rest and not last else self.decay_after(updates, rest or self.every_steps)

    def share_of_copy(self, steps: int) -> float:
        """Returns the share that the last copied weights have in the average after a run of `steps` steps, in [0, 1].

        With a high decay and no ramp, the average of a short run is hardly more than the weights of its first steps. 0 if
        there is no averaging, only copies: the run then exports its last weights.
        """
        whole, rest = divmod(steps, self.every_steps)
        decays = [self.decay_after(update, self.every_steps) for update in range(whole)]
        decays += [self.decay_after(whole, rest)] if rest else []
        averaging = [decay for decay in decays if decay]
        return math.prod(averaging) if averaging else 0.0


class Ema:
    """The averaged weights (`shadow`) in fp32, with the same decays as EMAModel of diffusers."""

    def __init__(self, weights: Mapping[str, Tensor], section: EmaSection, device: torch.device | str) -> None:
        self.section, self.device = section, device
        self.updates = 0
        self.shadow = {name: weight.detach().to(device, torch.float32, copy=True) for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int, *, last: bool) -> None:
        """Updates the shadow after optimizer step `step` if an update is due."""
        decay = self.section.decay_at(step, self.updates, last=last)
        if decay is None:
            return
        now = [weights[name].detach().to(self.device, torch.float32) for name in self.shadow]
        torch._foreach_lerp_(list(self.shadow.values()), now, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Swaps the shadow with the weights inside the block; copies nothing if both are on the same device."""
        self._exchange(weights)
        try:
            yield
        finally:
            self._exchange(weights)

    def _exchange(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            weight.data, self.shadow[name] = self.shadow[name].to(weight.device), weight.data.to(self.device)
