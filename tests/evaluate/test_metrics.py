import math

import pytest
import torch

from t2i.evaluate.metrics import Nearest, clip_score, cmmd, copied, interval, kid, prompt_retrieval


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_cmmd_is_zero_for_equal_sets_and_symmetric() -> None:
    x, y = unit(20, 8), unit(30, 8, seed=1)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    assert cmmd(x, y) == pytest.approx(cmmd(y, x))


def test_cmmd_of_two_points_in_closed_form() -> None:
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    assert cmmd(x, y) == pytest.approx(1000 * 2 * (1 - math.exp(-4 / 200)))


def test_cmmd_is_nearly_the_squared_distance_of_the_means() -> None:
    x, y = unit(500, 16), torch.nn.functional.normalize(unit(500, 16, seed=1) + 0.3, dim=-1)
    assert cmmd(x, y) == pytest.approx(1000 * (x.mean(0) - y.mean(0)).square().sum().item() / 100, rel=0.05)


def test_retrieval_and_score_of_known_features() -> None:
    prompts = torch.eye(4)
    images = prompts[[0, 1, 3, 2]]
    assert prompt_retrieval(prompts, prompts) == 1.0
    assert prompt_retrieval(images, prompts) == 0.5
    assert clip_score(images, prompts) == 50.0


def test_equal_prompts_share_the_first_rank() -> None:
    prompts = torch.eye(3)[[0, 0, 1]]
    assert prompt_retrieval(prompts, prompts) == 1.0


def test_kid_is_unbiased_and_detects_a_shift() -> None:
    values = [kid(unit(12, 8, seed=2 * n), unit(12, 8, seed=2 * n + 1)) for n in range(200)]
    mean, error = torch.tensor(values).mean().item(), torch.tensor(values).std().item() / 200**0.5
    assert abs(mean) < 3 * error
    assert kid(unit(50, 8), torch.nn.functional.normalize(unit(50, 8, seed=1) + 0.5, dim=-1)) > 2 * max(map(abs, values))


def test_kid_of_two_pairs_in_closed_form() -> None:
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, -1.0]])
    assert kid(x, y) == pytest.approx(1000 * (1 + 1 - 2 * (0 + 0 + 1 + 1) / 4))


def test_a_95_percent_interval_covers_the_mean_that_often() -> None:
    covered = 0
    for seed in range(100):
        values = torch.randn(60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        low, high = interval(lambda rows, values=values: values[rows].mean().item(), 60, 200, seed, centred=False)
        covered += low < 0 < high
    assert 85 <= covered <= 100


def test_a_centred_interval_contains_the_estimate_of_cmmd() -> None:
    x, y = unit(40, 8), unit(40, 8, seed=1)
    low, high = interval(lambda rows: cmmd(x[rows], y[rows]), 40, 200, 0, centred=True)
    assert low < cmmd(x, y) < high
    raised, _ = interval(lambda rows: cmmd(x[rows], y[rows]), 40, 200, 0, centred=False)
    assert raised > low


def test_copies_are_near_both_by_clip_and_in_pixels() -> None:
    heldout = Nearest(torch.linspace(0.1, 1, 20), torch.linspace(0.1, 1, 20))
    drawn = Nearest(torch.tensor([0.01, 0.01, 0.5]), torch.tensor([0.01, 0.9, 0.01]))
    assert copied(drawn, heldout).tolist() == [True, False, False]
    assert copied(heldout, heldout).double().mean() <= 0.05
