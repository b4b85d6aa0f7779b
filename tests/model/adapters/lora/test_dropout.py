import pytest
import torch

from t2i.model.adapters.lora.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_a_fraction_p_is_dropped_and_the_mean_stays(p) -> None:
    dropout = Dropout(p, "layer").train()
    dropout.drawn_for = (12345678901234567, 3, range(7, 8))
    out = dropout(torch.ones(1, 100_000))
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert out.mean().item() == pytest.approx(1, abs=0.01)


def test_masks_of_related_places_steps_and_layers_are_unrelated() -> None:
    drawn = []
    for layer, step in (("one", 0), ("one", 1), ("two", 0)):
        dropout = Dropout(0.5, layer).train()
        dropout.drawn_for = (0, step, range(2))
        drawn.append(dropout(torch.ones(2, 100_000)) - 1)
    masks = torch.cat(drawn)
    assert (masks @ masks.T / 100_000 - torch.eye(6)).abs().max() < 0.02
    assert (masks[:, 1:] * masks[:, :-1]).mean(dim=1).abs().max() < 0.02  # nor are neighbours
