import pytest
import torch
from torch import nn

from t2i.tools import cards, published
from t2i.tools.cards import Activations, activations, table
from tests.projects import ROOT


def test_the_state_of_sd15_is_what_its_parameters_take() -> None:
    text = "\n".join(table("sd15"))
    assert "860 M parameters" in text  # as published
    assert [f"{size} GB" in text for size in ("17.2", "13.8", "12.0", "8.6")] == [True] * 4


def test_sdxl_fits_24_and_40_gb_as_its_preset_says() -> None:
    lines = list(table("sdxl"))
    assert "2567 M parameters" in lines[0]  # as published
    heading = next(line for line in lines if line.startswith("largest"))
    for part, card in (("attn", "24 GB"), ("all", "40 GB")):
        row = next(line for line in lines if line.startswith(f"1024 px, {part}, adamw_8bit, EMA on CPU, checkpointing"))
        end = heading.index(card) + len(card)
        assert int(row[end - 9 : end]) >= 1
        assert row[end - 18 : end - 9].strip() == "-"


@pytest.mark.parametrize(("name", "how", "card"), [("sdxl", "adamw_8bit", "12 GB"), ("sd15", "adamw", "8 GB")])
def test_a_lora_fits_the_card_that_its_preset_names(name, how, card) -> None:
    lines = list(table(name))
    heading = next(line for line in lines if line.startswith("largest"))
    size = {"sdxl": 1024, "sd15": 512}[name]
    row = next(line for line in lines if line.startswith(f"{size} px, LoRA, rank 16, {how}, EMA on GPU, checkpointing"))
    end = heading.index(f" {card}") + len(card) + 1
    assert int(row[end - 9 : end]) >= 1


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_activations_grow_with_the_image_and_checkpointing_keeps_fewer(name) -> None:
    small, large = activations(name, 512), activations(name, 768)
    assert large.whole / small.whole == pytest.approx(2.25, rel=0.01)
    assert small.checkpointed < small.whole / 2


def test_activations_are_what_autograd_keeps(monkeypatch) -> None:
    """A linear layer keeps its input, and a second one the output of the first; both have 2 x 3 numbers of 4 bytes."""

    class Model(nn.Module):
        config = {"cross_attention_dim": 3}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, sample: object, timestep: object, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(encoder_hidden_states))

        def enable_gradient_checkpointing(self) -> None:
            pass

    monkeypatch.setattr(cards, "unet_of", lambda name: Model())
    monkeypatch.setattr(published, "TOKENS", 2)
    activations.cache_clear()
    assert activations("sd15", 512) == Activations(48, 48)
    activations.cache_clear()


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_the_documentation_has_the_table(name) -> None:
    assert "\n".join(line.rstrip() for line in table(name)) in (ROOT / "docs/memory.md").read_text(encoding="utf-8")
