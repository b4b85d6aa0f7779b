import pytest
import torch

from t2i.core.params import load_section
from t2i.model.runtime import Runtime
from tests.projects import ROOT


@pytest.mark.parametrize(("device", "there", "wanted"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")])
def test_auto_uses_a_gpu_if_there_is_one(monkeypatch, device, there, wanted) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert load_section(ROOT / "params.yaml", "runtime", Runtime).model_copy(update={"device": device}).torch_device() == wanted


def test_cuda_without_a_gpu_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"`runtime.device` is cuda, but PyTorch sees no GPU"):
        load_section(ROOT / "params.yaml", "runtime", Runtime).model_copy(update={"device": "cuda"}).torch_device()
