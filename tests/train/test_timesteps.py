import numpy as np
import pytest
import torch
from pydantic import ValidationError

from t2i.train.timesteps import (
    EndTimesteps,
    RangeTimesteps,
    Timesteps,
    UniformTimesteps,
    cumulated_probabilities,
    timesteps_of,
)


def probabilities_of(favouring: Timesteps, timesteps: int = 1000) -> torch.Tensor:
    cumulated = cumulated_probabilities(favouring(timesteps))
    return torch.diff(torch.from_numpy(cumulated), prepend=torch.zeros(1, dtype=torch.float64))


def test_uniform_timesteps_match_a_multiplication() -> None:
    cumulated = cumulated_probabilities(UniformTimesteps(name="uniform")(1000))
    uniform = np.random.default_rng(0).random(2000)
    assert timesteps_of(cumulated, uniform).tolist() == [int(u * 1000) for u in uniform]
    assert timesteps_of(cumulated, np.array([0.0, 1 - 1e-16])).tolist() == [0, 999]


@pytest.mark.parametrize(
    ("favouring", "favoured"),
    [
        (EndTimesteps(name="later", portion=0.25, multiplier=3.0), range(750, 1000)),
        (EndTimesteps(name="earlier", portion=0.25, multiplier=3.0), range(250)),
        (RangeTimesteps(name="range", begin=100, end=350, multiplier=3.0), range(100, 350)),
    ],
)
def test_the_multiplier_sets_how_often_timesteps_are_drawn(favouring, favoured) -> None:
    probabilities = probabilities_of(favouring)
    inside = torch.zeros(1000, dtype=torch.bool)
    inside[favoured.start : favoured.stop] = True
    torch.testing.assert_close(probabilities[inside] / probabilities[~inside][0], torch.full((250,), 3.0, dtype=torch.float64))
    assert probabilities.sum() == pytest.approx(1)
    cumulated = cumulated_probabilities(favouring(1000))
    drawn = timesteps_of(cumulated, np.random.default_rng(0).random(4000)).tolist()
    assert sum(timestep in favoured for timestep in drawn) / 4000 == pytest.approx(0.5, abs=0.05)  # 3 x 250 of 3 x 250 + 750


def test_an_empty_or_too_long_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="`begin` is 5 and `end` is 5"):
        RangeTimesteps(name="range", begin=5, end=5, multiplier=2.0)
    with pytest.raises(ValueError, match=r"`train.objective.timesteps.end` is 2000, but the schedule has 1000"):
        probabilities_of(RangeTimesteps(name="range", begin=0, end=2000, multiplier=2.0))


def test_a_portion_without_a_timestep_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`train.objective.timesteps.portion` is 0.0005, .* 1000"):
        EndTimesteps(name="later", portion=0.0005, multiplier=2.0)(1000)
