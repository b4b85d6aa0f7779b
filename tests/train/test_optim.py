import sys

import pytest
import torch
from diffusers.optimization import get_scheduler

from t2i.train.optim import (
    AdamW,
    Constant,
    Cosine,
    CosineWithRestarts,
    Linear,
    Polynomial,
    learning_rate,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)


@pytest.mark.parametrize(
    ("theirs", "ours", "options"),
    [
        ("constant_with_warmup", Constant(name="constant"), {}),
        ("linear", Linear(name="linear"), {}),
        ("cosine", Cosine(name="cosine"), {}),
        ("cosine_with_restarts", CosineWithRestarts(name="cosine_with_restarts", cycles=3), {"num_cycles": 3}),
        ("polynomial", Polynomial(name="polynomial", power=2.0, end_factor=2e-7), {"power": 2.0}),  # diffusers ends at 1e-7
    ],
)
@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_learning_rates_match_diffusers(theirs, ours, options, warmup_steps) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup_steps, num_training_steps=50, **options)
    for step in range(50):
        assert learning_rate(step, 0.5, warmup_steps, 50, ours) == pytest.approx(scheduler.get_last_lr()[0]), step
        optimizer.step()
        scheduler.step()


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, 0.5, 0, 10, Constant(name="constant")) == 0.5


def test_adamw_receives_all_parameters() -> None:
    params = AdamW(name="adamw", beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3)
    group = make_optimizer([torch.zeros(1, requires_grad=True)], params).param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-6, 0.3)


def stepped(optimizer: torch.optim.Optimizer, weights: dict[str, torch.nn.Parameter], times: int) -> None:
    for _ in range(times):
        sum(weight.square().sum() for weight in weights.values()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_a_restored_optimizer_continues_exactly(name) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    params = AdamW(name=name, beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.01)

    def made() -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
        generator = torch.Generator().manual_seed(0)
        weights = {part: torch.nn.Parameter(torch.randn(96, 64, generator=generator)) for part in ("a.b", "c", "d.e/f")}
        optimizer = make_optimizer([weights["c"], weights["d.e/f"]], params)
        optimizer.param_groups[0]["lr"] = 0.1
        return weights, optimizer

    weights, optimizer = made()
    stepped(optimizer, weights, 5)
    half, before = made()
    stepped(before, half, 2)
    tensors = {path: tensor.clone() for path, tensor in optimizer_tensors(before, half).items()}
    assert {path.rpartition("/")[0] for path in tensors} == {"c", "d.e/f"}
    assert len({tensor.data_ptr() for tensor in optimizer_tensors(before, half).values()}) == len(tensors)
    after = make_optimizer([half["c"], half["d.e/f"]], params)
    restore_optimizer(after, half, tensors)
    after.param_groups[0]["lr"] = 0.1
    stepped(after, half, 3)
    assert all(torch.equal(half[part], weights[part]) for part in weights)


def test_adamw_8bit_without_bitsandbytes_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    params = AdamW(name="adamw_8bit", beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.01)
    with pytest.raises(ValueError, match=r"pip install 't2i\[bitsandbytes\]'"):
        make_optimizer([torch.zeros(1, requires_grad=True)], params)
