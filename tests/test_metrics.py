import math

import pytest
import torch

from t2i.metrics import Nearest, clip_score, cmmd, copied, interval, kid, nearest, prompt_retrieval


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


def test_kid_is_unbiased_and_sees_a_shift() -> None:
    values = [kid(unit(12, 8, seed=2 * n), unit(12, 8, seed=2 * n + 1)) for n in range(200)]
    mean, error = torch.tensor(values).mean().item(), torch.tensor(values).std().item() / 200**0.5
    assert abs(mean) < 3 * error
    assert kid(unit(50, 8), torch.nn.functional.normalize(unit(50, 8, seed=1) + 0.5, dim=-1)) > 2 * max(map(abs, values))


def test_kid_of_two_pairs_in_closed_form() -> None:
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, -1.0]])
    assert kid(x, y) == pytest.approx(1000 * (1 + 1 - 2 * (0 + 0 + 1 + 1) / 4))


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        values = torch.randn(60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        low, high = interval(lambda rows, values=values: values[rows].mean().item(), 60, 200, seed)
        covered += low < 0 < high
    assert 85 <= covered <= 100


def test_an_interval_lies_around_the_estimate_though_repeats_raise_a_discrepancy() -> None:
    x, y = unit(40, 8), unit(40, 8, seed=1)
    low, high = interval(lambda rows: cmmd(x[rows], y[rows]), 40, 200, 0)
    assert low < cmmd(x, y) < high


def test_copies_are_found_and_new_images_are_not_called_so() -> None:
    train, train_pixels = unit(50, 16), torch.rand(50, 12, generator=torch.Generator().manual_seed(0))
    new, new_pixels = unit(40, 16, seed=1), torch.rand(40, 12, generator=torch.Generator().manual_seed(1))
    heldout = nearest(new, new_pixels, train, train_pixels)
    copies = nearest(train[[3, 7]], train_pixels[[3, 7]], train, train_pixels)
    assert copies.place.tolist() == [3, 7]
    assert copied(copies, heldout).all()
    assert copied(heldout, heldout).double().mean() <= 0.05


def test_what_is_near_by_clip_alone_is_no_copy() -> None:
    heldout = Nearest(torch.zeros(20, dtype=torch.long), torch.linspace(0.1, 1, 20), torch.linspace(0.1, 1, 20))
    drawn = Nearest(torch.tensor([0, 0]), torch.tensor([0.01, 0.01]), torch.tensor([0.01, 0.9]))
    assert copied(drawn, heldout).tolist() == [True, False]
