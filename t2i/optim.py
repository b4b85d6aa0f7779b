"""Optimisation: AdamW, and a learning rate that is a pure function of the step."""

import math
import re
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.params import Params


class AdamWParams(Params):
    """`train.optimizer` (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    name: Literal["adamw"]
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    epsilon: float = Field(gt=0)
    weight_decay: float = Field(ge=0)


class Constant(Params):
    """The learning rate after warm-up, for good."""

    name: Literal["constant"]

    def __call__(self, progress: float) -> float:
        """Returns the factor at a share of the steps after warm-up."""
        del progress
        return 1.0


class Cosine(Params):
    """Half a cosine from the learning rate to zero (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5)."""

    name: Literal["cosine"]

    def __call__(self, progress: float) -> float:
        """Returns the factor at a share of the steps after warm-up."""
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


Schedule = Annotated[Constant | Cosine, Field(discriminator="name")]


def trainable(unet: nn.Module, pattern: str) -> list[nn.Parameter]:
    """Freezes all parameters but those in whose name the regular expression is found, and returns these.

    Raises:
        ValueError: when there are none.
    """
    for name, weight in unet.named_parameters():
        weight.requires_grad_(re.search(pattern, name) is not None)
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    if not weights:
        starts = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name, _ in unet.named_parameters()))
        raise ValueError(f"`train.trainable` is {pattern!r}, which no parameter's name has in it; they begin with {starts}")
    return weights


def make_optimizer(weights: Iterable[Tensor], params: AdamWParams) -> torch.optim.AdamW:
    """Returns a fused AdamW; its learning rate is set before each step."""
    betas = (params.beta1, params.beta2)
    return torch.optim.AdamW(weights, lr=0.0, betas=betas, eps=params.epsilon, weight_decay=params.weight_decay, fused=True)


def learning_rate(step: int, peak: float, warmup_steps: int, steps: int, schedule: Constant | Cosine) -> float:
    """Returns the learning rate of a step, counted from 0: linear up to the peak, then the schedule.

    As diffusers' get_scheduler: step 0 of a warm-up has rate 0.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * schedule((step - warmup_steps) / max(1, steps - warmup_steps))
