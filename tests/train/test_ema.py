import pytest
import torch
from diffusers.training_utils import EMAModel

from t2i.train.ema import Ema, EmaSection


def params(**changes) -> EmaSection:
    return EmaSection(**({"decay": 0.9, "ramp": {"name": "reciprocal"}, "start_step": 0, "every_steps": 1} | changes))


@pytest.mark.parametrize(
    ("warmup", "ramp"), [(False, {"name": "reciprocal"}), (True, {"name": "power", "inv_gamma": 1.0, "power": 0.75})]
)
@pytest.mark.parametrize(("decay", "start_step"), [(0.9, 0), (0.9999, 0), (0.9999, 6)])
def test_shadow_follows_diffusers_ema_model(warmup, ramp, decay, start_step) -> None:
    layer = torch.nn.Linear(3, 3)
    theirs = EMAModel(
        layer.parameters(), decay=decay, use_ema_warmup=warmup, inv_gamma=1.0, power=0.75, update_after_step=start_step
    )
    ours = Ema(dict(layer.named_parameters()), params(decay=decay, ramp=ramp, start_step=start_step), "cpu")
    for step in range(1, 40):
        with torch.no_grad():
            for weight in layer.parameters():
                weight.add_(torch.randn_like(weight))
        theirs.step(layer.parameters())
        ours.update(dict(layer.named_parameters()), step, last=False)
        for shadow, reference in zip(ours.shadow.values(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(shadow, reference)


def test_the_first_update_copies() -> None:
    ema = Ema({"w": torch.zeros(2)}, params(), "cpu")
    ema.update({"w": torch.ones(2)}, 1, last=False)
    assert (ema.shadow["w"] == 1).all()


def test_updates_every_n_steps_use_the_nth_power_of_the_decay() -> None:
    ema = Ema({"w": torch.zeros(1)}, params(decay=0.5, every_steps=4), "cpu")
    for step in range(1, 401):
        ema.update({"w": torch.zeros(1)}, step, last=False)
    assert ema.updates == 100
    assert ema.section.decay_after(ema.updates, 4) == 0.5**4


def test_weights_are_matched_by_name_not_by_order() -> None:
    ema = Ema({"a": torch.zeros(2), "b": torch.zeros(3)}, params(), "cpu")
    ema.shadow = dict(reversed(ema.shadow.items()))  # as a file with another order loads them
    ema.update({"a": torch.full((2,), 1.0), "b": torch.full((3,), 2.0)}, 1, last=False)
    assert (ema.shadow["a"] == 1).all()
    assert (ema.shadow["b"] == 2).all()


def test_the_shadow_is_swapped_in_and_out() -> None:
    weights = {"w": torch.nn.Parameter(torch.ones(3))}
    ema = Ema(weights, params(), "cpu")
    ema.shadow["w"].fill_(7.0)
    with ema.applied(weights):
        assert weights["w"].tolist() == [7.0] * 3
        assert ema.shadow["w"].tolist() == [1.0] * 3
    assert weights["w"].tolist() == [1.0] * 3
    assert ema.shadow["w"].tolist() == [7.0] * 3


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_the_last_step_always_updates(steps) -> None:
    sparse, dense = (Ema({"w": torch.zeros(1)}, params(decay=0.0, every_steps=every), "cpu") for every in (5, 1))
    for step in range(1, steps + 1):
        for ema in (sparse, dense):
            ema.update({"w": torch.full((1,), float(step))}, step, last=step == steps)
    assert sparse.shadow["w"] == dense.shadow["w"] == steps


def test_without_a_ramp_the_decay_is_full_after_the_copy() -> None:
    ema = Ema({"w": torch.zeros(1)}, params(ramp={"name": "none"}), "cpu")
    assert [ema.section.decay_after(updates, 1) for updates in (0, 1, 100)] == [0.0, 0.9, 0.9]


@pytest.mark.parametrize("ramp", [{"name": "none"}, {"name": "reciprocal"}, {"name": "power", "inv_gamma": 1.0, "power": 0.75}])
@pytest.mark.parametrize(("start_step", "every_steps", "steps"), [(0, 1, 40), (0, 5, 43), (7, 3, 40)])
def test_the_share_of_the_copy_is_that_of_a_real_average(ramp, start_step, every_steps, steps) -> None:
    section = params(decay=0.99, ramp=ramp, start_step=start_step, every_steps=every_steps)
    ema = Ema({"w": torch.zeros(1)}, section, "cpu")
    for step in range(1, steps + 1):
        copied = section.decay_after(ema.updates, 1) == 0 and (step % every_steps == 0 or step == steps)
        if copied:
            ema.update({"w": torch.ones(1)}, step, last=step == steps)  # what is copied last is 1, all later weights are 0
        else:
            ema.update({"w": torch.zeros(1)}, step, last=step == steps)
    assert section.share_of_copy(steps) == pytest.approx(ema.shadow["w"].item(), rel=1e-5)


def test_a_short_average_without_a_ramp_is_mostly_its_first_weights() -> None:
    section = params(decay=0.9999, ramp={"name": "none"})
    assert section.share_of_copy(1400) == pytest.approx(0.9999**1399)
    assert params(decay=0.9999).share_of_copy(1400) < 1e-9
    assert params(start_step=100).share_of_copy(40) == params(every_steps=9).share_of_copy(4) == 0  # only copies
