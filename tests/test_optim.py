import pytest
import torch
from diffusers.optimization import get_scheduler

from t2i.optim import AdamWParams, Constant, Cosine, learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("theirs", "ours"), [("constant_with_warmup", Constant(name="constant")), ("cosine", Cosine(name="cosine"))]
)
def test_learning_rates_are_those_of_diffusers(theirs, ours) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=7, num_training_steps=50)
    for step in range(50):
        assert learning_rate(step, 0.5, 7, 50, ours) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, 0.5, 0, 10, Constant(name="constant")) == 0.5


def test_adamw_has_every_parameter() -> None:
    params = AdamWParams(name="adamw", beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3)
    group = make_optimizer([torch.zeros(1, requires_grad=True)], params).param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-6, 0.3)
