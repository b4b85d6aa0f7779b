import pytest
import torch
from safetensors.torch import save_file

from t2i.model.pretrained import Change
from t2i.train.change import relative_change


def test_relative_change_is_that_of_all_weights_together(tmp_path) -> None:
    save_file({"a": torch.full((4,), 3.0), "b": torch.full((4,), 4.0), "frozen": torch.ones(9)}, tmp_path / "1.safetensors")
    same = {"a": torch.full((4,), 3.0), "b": torch.full((4,), 4.0)}
    assert relative_change(tmp_path, replaced_by(same)) == 0
    assert relative_change(tmp_path, replaced_by(same | {"b": torch.full((4,), 4.5)})) == pytest.approx(0.1)
    assert relative_change(tmp_path, replaced_by({"other": torch.ones(1)})) == float("inf")


def replaced_by(weights: dict[str, torch.Tensor]) -> Change:
    return lambda name, before: weights.get(name, before)
