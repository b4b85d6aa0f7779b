"""Timesteps: how often training draws each timestep of the schedule."""

from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from t2i.core.params import Section

Weights = Float[Tensor, " timesteps"]
"""One number per timestep of the schedule, in fp64."""


class UniformTimesteps(Section):
    """Draws all timesteps equally often."""

    name: Literal["uniform"]

    def __call__(self, timesteps: int) -> Weights:
        """Returns how often each timestep is drawn, relative to the others."""
        return torch.ones(timesteps, dtype=torch.float64)


class EndTimesteps(Section):
    """Draws the timesteps at one end of the schedule more or less often: `later` is the noisy end, `earlier` the clean end."""

    name: Literal["later", "earlier"]
    portion: float = Field(gt=0, le=1)
    """Fraction of the timesteps that `multiplier` applies to."""
    multiplier: float = Field(gt=0)
    """How much more often each of them is drawn than any other timestep; below 1: less often."""

    def __call__(self, timesteps: int) -> Weights:
        """Returns how often each timestep is drawn, relative to the others."""
        count = int(self.portion * timesteps)
        if not count:
            raise ValueError(
                f"`train.objective.timesteps.portion` is {self.portion}, less than one of {timesteps} timesteps: raise it, or "
                "set `train.objective.timesteps: {name: uniform}`"
            )
        favoured = slice(timesteps - count, timesteps) if self.name == "later" else slice(count)
        return _favouring(timesteps, favoured, self.multiplier)


class RangeTimesteps(Section):
    """Draws the timesteps from `begin` (included) to `end` (excluded) more or less often."""

    name: Literal["range"]
    begin: int = Field(ge=0)
    end: int = Field(ge=1)
    multiplier: float = Field(gt=0)
    """How much more often each of them is drawn than any other timestep; below 1: less often."""

    @model_validator(mode="after")
    def _not_empty(self) -> "RangeTimesteps":
        if self.begin >= self.end:
            raise ValueError(f"`begin` is {self.begin} and `end` is {self.end}, an empty range: set `end` above `begin`")
        return self

    def __call__(self, timesteps: int) -> Weights:
        """Returns how often each timestep is drawn, relative to the others."""
        if self.end > timesteps:
            raise ValueError(f"`train.objective.timesteps.end` is {self.end}, but the schedule has {timesteps} timesteps")
        return _favouring(timesteps, slice(self.begin, self.end), self.multiplier)


Timesteps = Annotated[UniformTimesteps | EndTimesteps | RangeTimesteps, Field(discriminator="name")]


def _favouring(timesteps: int, favoured: slice, multiplier: float) -> Weights:
    weights = torch.ones(timesteps, dtype=torch.float64)
    weights[favoured] *= multiplier
    return weights


def timesteps_of(cumulated: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Returns the timesteps of numbers in [0, 1), by the inverse of the cumulated probabilities."""
    return np.minimum(np.searchsorted(cumulated, uniform, side="right"), len(cumulated) - 1)


def cumulated_probabilities(weights: Weights) -> np.ndarray:
    """Returns, for each timestep, the probability that it or an earlier one is drawn."""
    cumulated: np.ndarray = (weights.cumsum(0) / weights.sum()).numpy()
    return cumulated
