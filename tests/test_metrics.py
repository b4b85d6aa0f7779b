import math

import pytest
import torch

from t2i.metrics import clip_score, cmmd, prompt_retrieval, rounded


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


def test_rounding_leaves_counts_alone() -> None:
    assert rounded({"n": 1234567, "x": 0.123456789}) == {"n": 1234567, "x": 0.12346}
