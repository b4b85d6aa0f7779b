import pytest
import torch

from t2i.execution import MOST_OVERFLOWS, Overflows, prepared_unet
from t2i.families.stable_diffusion import Family
from t2i.params import load
from t2i.runtime import Runtime
from tests.conftest import ROOT


def overflowing(
    weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, by: float
) -> torch.Tensor:
    """A step as Accelerate takes it; returns the norm of the gradients."""
    scaler.scale((weight * by).sum()).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_([weight], 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return norm


def test_a_step_that_overflows_changes_no_weight_and_is_taken_again() -> None:
    weight, scaler = torch.nn.Parameter(torch.ones(3)), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    overflows = Overflows(scaler)
    assert overflows.met(overflowing(weight, optimizer, scaler, by=float("inf")))
    assert weight.tolist() == [1.0] * 3
    assert scaler.get_scale() == 2**15
    assert not overflows.met(overflowing(weight, optimizer, scaler, by=1.0))
    assert (weight < 1).all()


def test_overflow_without_end_is_an_error_that_says_what_to_do() -> None:
    weight, scaler = torch.nn.Parameter(torch.ones(3)), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    overflows = Overflows(scaler)
    for _ in range(MOST_OVERFLOWS):
        assert overflows.met(overflowing(weight, optimizer, scaler, by=float("nan")))
    with pytest.raises(ValueError, match=r"overflowed 31 times in a row.*lower `train.learning_rate`"):
        overflows.met(overflowing(weight, optimizer, scaler, by=float("nan")))


def test_without_a_scaler_nothing_is_taken_again() -> None:
    assert not Overflows(None).met(torch.tensor(float("nan")))  # the history says what is wrong


def test_attention_and_checkpointing_are_what_runtime_says(tiny_base) -> None:
    runtime = load(ROOT / "params.yaml", "runtime", Runtime).model_copy(
        update={"device": "cpu", "gradient_checkpointing": True}
    )
    unet = prepared_unet(Family(tiny_base), runtime, random=False)
    assert unet.training
    assert unet.is_gradient_checkpointing
    assert {type(processor).__name__ for processor in unet.attn_processors.values()} == {"AttnProcessor"}


def test_xformers_where_it_cannot_work_is_refused_with_what_to_do(tiny_base, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    runtime = load(ROOT / "params.yaml", "runtime", Runtime).model_copy(update={"attention": "xformers"})
    with pytest.raises(ValueError, match=r"`runtime.attention` is xformers, which does not work here .*set .* to auto"):
        prepared_unet(Family(tiny_base), runtime, random=False)
