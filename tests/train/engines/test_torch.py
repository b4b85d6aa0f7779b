from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from t2i.core.params import load_section
from t2i.data.cached import CachedRecords
from t2i.model.families.stable_diffusion import Family
from t2i.model.runtime import Runtime
from t2i.train.engines.torch.engine import Prepared, prepare
from t2i.train.section import Train
from tests.projects import Project


def made(project: Project, train: dict[str, Any], runtime: dict[str, Any]) -> Prepared:
    """A run on the project's caches, whose learning rate is not warmed up from zero."""
    AcceleratorState._reset_state(reset_partial_state=True)  # as a new process finds it
    project.params["train"] |= {"warmup_steps": 0} | train
    project.params["runtime"] |= runtime
    project.write()
    params_file, data = project.folder / "params.yaml", project.folder / "data"
    sections = load_section(params_file, "train", Train), load_section(params_file, "runtime", Runtime)
    return prepare(*sections, Family(data / "base"), CachedRecords(data / "latents", data / "embeds", "train"))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("train", "runtime"),
    [
        ({}, {}),
        ({"init": "random", "trainable": "^conv_out"}, {}),  # the frozen random weights are those of the seed
        ({}, {"ema_device": "cpu", "micro_batch_size": 3}),
        ({"order": {"name": "windows", "shards": 1}}, {}),
    ],
    ids=["plain", "random", "micro-batches", "windows"],
)
def test_restored_state_goes_on_with_the_same_bits(project, train, runtime) -> None:
    project.fetch_and_encode()
    whole = made(project, train, runtime)
    for step in range(4):
        whole.take_step(step)
    first = made(project, train, runtime)
    for step in range(2):
        first.take_step(step)
    state = {group: {name: tensor.clone() for name, tensor in tensors.items()} for group, tensors in first.state().items()}
    second = made(project, train, runtime)
    second.restore(state)
    for step in range(2, 4):
        second.take_step(step)
    assert equal(dict(second.unet.named_parameters()), dict(whole.unet.named_parameters()))
    assert equal(second.ema.shadow, whole.ema.shadow)


def test_windows_have_equal_losses_resumed_and_in_micro_batches(project) -> None:
    project.fetch_and_encode()
    windows = {"order": {"name": "windows", "shards": 1}}  # of 8, 8 and 1 records

    def losses(run: Prepared, steps: range) -> list[float]:
        return [float(figures.loss) for step in steps if (figures := run.take_step(step))]

    whole = losses(made(project, windows, {}), range(6))
    first = made(project, windows, {})
    assert losses(first, range(3)) == whole[:3]
    second = made(project, windows, {})
    second.restore(first.state())
    assert losses(second, range(3, 6)) == whole[3:]
    assert losses(made(project, windows, {"micro_batch_size": 3}), range(6)) == pytest.approx(whole, rel=1e-4)
    assert losses(made(project, {"order": {"name": "global"}}, {"micro_batch_size": None}), range(6))[0] != whole[0]


def test_state_holds_the_trained_weights_alone(project) -> None:
    project.fetch_and_encode()
    prepared = made(project, {"trainable": "^conv_out"}, {})
    prepared.take_step(0)
    state = prepared.state()
    assert set(state["unet"]) == set(state["ema"]) == {"conv_out.weight", "conv_out.bias"}


def test_weights_are_lent_for_evaluation_and_given_back(project) -> None:
    project.fetch_and_encode()
    prepared = made(project, {"ema": project.params["train"]["ema"] | {"start_step": 0, "every_steps": 1}}, {})
    for step in range(3):
        prepared.take_step(step)
    own = {name: weight.detach().clone() for name, weight in prepared.unet.named_parameters()}
    with prepared.evaluated(averaged=True) as unet:
        assert not unet.training
        lent = {name: weight.detach().clone() for name, weight in unet.named_parameters()}
    assert equal({name: lent[name] for name in prepared.trained}, prepared.ema.shadow)
    assert not equal(lent, own)
    with pytest.raises(RuntimeError, match="out of memory"), prepared.evaluated(averaged=True):
        raise RuntimeError("out of memory")
    assert prepared.unet.training
    assert equal({name: weight.detach() for name, weight in prepared.unet.named_parameters()}, own)


def test_a_step_says_loss_error_norm_and_rate(project) -> None:
    project.fetch_and_encode()
    figures = made(project, {"schedule": {"name": "constant"}}, {}).take_step(0)
    assert figures is not None
    assert figures.learning_rate == project.params["train"]["learning_rate"]
    assert float(figures.loss) > 0
    assert float(figures.grad_norm) > 0
