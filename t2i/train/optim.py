"""Optimization: AdamW, and a learning rate that is a pure function of the step."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.params import Section


class AdamW(Section):
    """Section `train.optimizer` (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    name: Literal["adamw", "adamw_8bit"]
    """`adamw_8bit` keeps both moments in 8 bits (Dettmers et al. 2021, arXiv 2110.02861); needs the extra `bitsandbytes`."""
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    epsilon: float = Field(gt=0)
    weight_decay: float = Field(ge=0)


class Constant(Section):
    """A constant learning rate after warm-up."""

    name: Literal["constant"]

    def __call__(self, progress: float) -> float:
        """Returns the factor at a fraction of the steps after warm-up."""
        del progress
        return 1.0


class Linear(Section):
    """Linear decay from the learning rate to zero."""

    name: Literal["linear"]

    def __call__(self, progress: float) -> float:
        """Returns the factor at a fraction of the steps after warm-up."""
        return max(0.0, 1 - progress)


class Cosine(Section):
    """Cosine decay from the learning rate to zero (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5)."""

    name: Literal["cosine"]

    def __call__(self, progress: float) -> float:
        """Returns the factor at a fraction of the steps after warm-up."""
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class CosineWithRestarts(Section):
    """`cycles` cosine decays, each from the learning rate to zero (SGDR, arXiv 1608.03983)."""

    name: Literal["cosine_with_restarts"]
    cycles: int = Field(ge=1)

    def __call__(self, progress: float) -> float:
        """Returns the factor at a fraction of the steps after warm-up."""
        return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (self.cycles * progress % 1)))


class Polynomial(Section):
    """Polynomial decay, `(1 - progress) ** power`, from the learning rate to `end_factor` times it."""

    name: Literal["polynomial"]
    power: float = Field(gt=0)
    end_factor: float = Field(ge=0, lt=1)

    def __call__(self, progress: float) -> float:
        """Returns the factor at a fraction of the steps after warm-up."""
        left = max(0.0, 1 - progress)
        return float(self.end_factor + (1 - self.end_factor) * left**self.power)


Schedule = Annotated[Constant | Linear | Cosine | CosineWithRestarts | Polynomial, Field(discriminator="name")]


def trainable(unet: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """Freezes all parameters whose names do not match a regular expression; returns the others by name.

    Raises:
        ValueError: if no name matches.
    """
    for name, weight in unet.named_parameters():
        weight.requires_grad_(re.search(pattern, name) is not None)
    weights = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
    if not weights:
        starts = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name, _ in unet.named_parameters()))
        raise ValueError(f"`train.trainable` is {pattern!r}, which matches no parameter; their names begin with {starts}")
    return weights


def make_optimizer(weights: Iterable[Tensor], section: AdamW) -> torch.optim.Optimizer:
    """Returns a fused or an 8-bit AdamW; the caller sets its learning rate before each step.

    Raises:
        ValueError: if `section` asks for 8 bits and bitsandbytes cannot be imported.
    """
    betas = (section.beta1, section.beta2)
    rest: dict[str, Any] = {"lr": 0.0, "betas": betas, "eps": section.epsilon, "weight_decay": section.weight_decay}
    if section.name == "adamw":
        return torch.optim.AdamW(weights, fused=True, **rest)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            f"`train.optimizer.name` is adamw_8bit, which needs bitsandbytes ({error}): "
            "pip install 't2i[bitsandbytes]', or set it to adamw"
        ) from None
    optimizer: torch.optim.Optimizer = AdamW8bit(weights, **rest)
    return optimizer


def optimizer_tensors(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of an optimizer as tensors `WEIGHT/exp_avg`; clones tensors that several weights share."""
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, weight in weights.items():
        for key, value in optimizer.state.get(weight, {}).items():
            tensor = torch.as_tensor(value)
            tensors[f"{name}/{key}"] = tensor.clone() if tensor.data_ptr() in taken else tensor
            taken.add(tensor.data_ptr())
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Loads the state that `optimizer_tensors` returned. Integer scalars become int: bitsandbytes counts steps with one."""
    names = {id(weight): name for name, weight in weights.items()}
    own = (weight for group in optimizer.param_groups for weight in group["params"])
    places = {names[id(weight)]: place for place, weight in enumerate(own)}
    state: dict[int, dict[str, Any]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        number = not tensor.ndim and not tensor.is_floating_point()
        state.setdefault(places[name], {})[key] = tensor.item() if number else tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def learning_rate(step: int, peak: float, warmup_steps: int, steps: int, schedule: Schedule) -> float:
    """Returns the learning rate of a step, counted from 0: a linear warm-up to the peak, then the schedule.

    As in get_scheduler of diffusers, step 0 of a warm-up has a learning rate of 0.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * schedule((step - warmup_steps) / max(1, steps - warmup_steps))
