import pytest
import torch

from t2i.core.params import load_section
from t2i.model.runtime import Runtime, device_in_words
from tests.projects import ROOT


def device_of(name: str) -> str:
    return load_section(ROOT / "params.yaml", "runtime", Runtime).model_copy(update={"device": name}).torch_device()


@pytest.mark.parametrize("there", ["cuda", "mps", "xpu"])
def test_auto_takes_the_accelerator_that_is_there(machine_with, there) -> None:
    machine_with(there)
    assert (device_of("auto"), device_of(there), device_of("cpu")) == (there, there, "cpu")


@pytest.mark.parametrize("there", [None, "mtia"])
def test_auto_is_the_cpu_without_a_known_accelerator(machine_with, there) -> None:
    machine_with(there)
    assert device_of("auto") == "cpu"


@pytest.mark.parametrize(
    ("device", "there", "wanted"),
    [
        ("cuda", None, f"PyTorch {torch.__version__} finds only cpu here: set it to auto or cpu"),
        ("cuda", "mps", "finds only cpu and mps here: set it to auto, cpu or mps"),
        ("mps", "cuda", "finds only cpu and cuda here: set it to auto, cpu or cuda"),
        ("xpu", "mtia", "finds only cpu here: set it to auto or cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(machine_with, device, there, wanted) -> None:
    machine_with(there)
    with pytest.raises(ValueError, match=f"`runtime.device` is {device}, ") as refusal:
        device_of(device)
    assert wanted in str(refusal.value)


def test_a_cpu_is_chosen_without_a_look_at_accelerators(monkeypatch) -> None:
    monkeypatch.delattr(torch.accelerator, "current_accelerator")
    assert device_of("cpu") == "cpu"


@pytest.mark.parametrize(("there", "attention"), [("mps", "sdpa"), ("xpu", "sdpa"), (None, "eager")])
def test_attention_in_bf16_follows_the_device(machine_with, there, attention) -> None:
    machine_with(there)
    runtime = load_section(ROOT / "params.yaml", "runtime", Runtime).model_copy(update={"device": "auto"})
    assert runtime.attention_here("bf16") == attention


def test_a_cpu_in_a_group_of_processes_is_said_with_its_threads() -> None:
    assert device_in_words("cpu:0") == device_in_words(torch.device("cpu")) == f"cpu with {torch.get_num_threads()} threads"
    assert device_in_words("cuda:1") == "cuda:1"
