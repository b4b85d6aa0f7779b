"""Timesteps: how often each of the schedule's is trained on."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from t2i.core.params import Params


class UniformTimesteps(Params):
    """Every timestep as often as another."""

    name: Literal["uniform"]

    def favoured(self, timesteps: int) -> range:
        """Returns the timesteps that are drawn `multiplier` times as often as the others."""
        del timesteps
        return range(0)

    @property
    def multiplier(self) -> float:
        """How much more often."""
        return 1.0


class EndTimesteps(Params):
    """A share of the schedule at one of its ends: `later` is the noisy one, `earlier` the one of details."""

    name: Literal["later", "earlier"]
    portion: float = Field(gt=0, le=1)
    """Share of the timesteps that is favoured."""
    multiplier: float = Field(gt=0)
    """How much more often each of them is drawn than another; below 1: less often."""

    def favoured(self, timesteps: int) -> range:
        """Returns the timesteps that are drawn `multiplier` times as often as the others."""
        count = int(self.portion * timesteps)
        return range(timesteps - count, timesteps) if self.name == "later" else range(count)


class RangeTimesteps(Params):
    """The timesteps from `begin` up to, and not including, `end`."""

    name: Literal["range"]
    begin: int = Field(ge=0)
    end: int = Field(ge=1)
    multiplier: float = Field(gt=0)
    """How much more often each of them is drawn than another; below 1: less often."""

    @model_validator(mode="after")
    def _not_empty(self) -> "RangeTimesteps":
        if self.begin >= self.end:
            raise ValueError(f"`begin` is {self.begin} and `end` {self.end}: the range would be empty")
        return self

    def favoured(self, timesteps: int) -> range:
        """Returns the timesteps that are drawn `multiplier` times as often as the others."""
        if self.end > timesteps:
            raise ValueError(f"`train.objective.timesteps.end` is {self.end}, but the schedule has {timesteps} timesteps")
        return range(self.begin, self.end)


Timesteps = Annotated[UniformTimesteps | EndTimesteps | RangeTimesteps, Field(discriminator="name")]


def draw_timestep(cumulated: Float[Tensor, " timesteps"], uniform: float) -> int:
    """Returns the timestep at a number of [0, 1): the inverse of the cumulated probabilities."""
    return min(int(torch.searchsorted(cumulated, uniform, right=True)), len(cumulated) - 1)


def cumulated_probabilities(timesteps: int, favouring: Timesteps) -> Float[Tensor, " timesteps"]:
    """Returns the probability, in fp64, that a timestep up to each is drawn."""
    weights = torch.ones(timesteps, dtype=torch.float64)
    favoured = favouring.favoured(timesteps)
    weights[favoured.start : favoured.stop] *= favouring.multiplier
    return weights.cumsum(0) / weights.sum()
