"""EMA: the running mean of the weights that is exported, sampled and measured."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor

from t2i.core.params import Params


class EmaParams(Params):
    """`train.ema`."""

    decay: float = Field(ge=0, lt=1)
    """Largest decay. Without warmup update n has min(decay, (1 + n) / (10 + n)): 3,000 updates end at 0.997."""
    warmup: bool
    """Whether the decay grows as 1 - (1 + n / inv_gamma) ** -power instead."""
    start_step: int = Field(ge=0)
    """Optimizer steps before the mean begins; until then every update copies the weights."""
    inv_gamma: float = Field(gt=0)
    power: float = Field(gt=0)
    every_steps: int = Field(ge=1)
    """Optimizer steps between updates; each then uses decay ** every_steps, and there is one after the last."""


class Ema:
    """Shadow weights in fp32, with the decays of diffusers' EMAModel."""

    def __init__(self, weights: Mapping[str, Tensor], params: EmaParams, device: torch.device | str) -> None:
        self.params, self.device = params, device
        self.updates = 0
        self.shadow = {name: weight.detach().to(device, torch.float32, copy=True) for name, weight in weights.items()}

    def decay(self, updates: int, steps: int) -> float:
        """Returns the decay of an update over some steps, `updates` having gone before; the first copies the weights."""
        p = self.params
        n = max(0, updates * p.every_steps - p.start_step)
        if n == 0:
            return 0.0
        ramp = 1 - (1 + n / p.inv_gamma) ** -p.power if p.warmup else (1 + n) / (10 + n)
        return min(ramp, p.decay) ** steps

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int, *, last: bool) -> None:
        """Moves the shadow toward the weights after optimizer step `step`, if every_steps divides it or it is the last."""
        rest = step % self.params.every_steps
        if rest and not last:
            return
        decay = self.decay(self.updates, rest or self.params.every_steps)
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
