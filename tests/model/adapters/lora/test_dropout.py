import pytest
import torch

from t2i.model.adapters.lora.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_a_fraction_p_is_dropped_and_the_mean_stays(p) -> None:
    dropout = Dropout(p, "layer").train()
    dropout.seeds = [12345678901234567]
    out = dropout(torch.ones(1, 100_000))
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert out.mean().item() == pytest.approx(1, abs=0.01)


def test_masks_of_related_seeds_are_unrelated() -> None:
    dropout = Dropout(0.5, "layer").train()
    dropout.seeds = [0, 1, 2, 1 << 32, (1 << 32) + 1, 1 << 62]
    masks = dropout(torch.ones(6, 100_000)) - 1
    assert (masks @ masks.T / 100_000 - torch.eye(6)).abs().max() < 0.02
    assert (masks[:, 1:] * masks[:, :-1]).mean(dim=1).abs().max() < 0.02  # nor are neighbours
