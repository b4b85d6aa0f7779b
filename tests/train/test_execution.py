import shutil
from typing import Any

import pytest
import torch
from accelerate import AutocastKwargs
from accelerate.state import AcceleratorState
from safetensors.torch import load

from t2i.core.params import load_section
from t2i.model.families.stable_diffusion import Family
from t2i.model.runtime import Runtime
from t2i.train.execution import (
    MOST_OVERFLOWS,
    Overflows,
    check_settings,
    make_accelerator,
    prepared_unet,
    take_over_threads,
)
from t2i.train.section import Train
from tests.projects import ROOT, Project, files


def overflowing(
    weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, by: float
) -> torch.Tensor:
    """Takes a step as Accelerate does; returns the norm of the gradients."""
    scaler.scale((weight * by).sum()).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_([weight], 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return norm


def test_a_step_that_overflows_is_repeated() -> None:
    weight, scaler = torch.nn.Parameter(torch.ones(3)), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    overflows = Overflows(scaler)
    assert overflows.met(overflowing(weight, optimizer, scaler, by=float("inf")))
    assert weight.tolist() == [1.0] * 3
    assert scaler.get_scale() == 2**15
    assert not overflows.met(overflowing(weight, optimizer, scaler, by=1.0))
    assert (weight < 1).all()


def test_endless_overflows_are_an_error() -> None:
    weight, scaler = torch.nn.Parameter(torch.ones(3)), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    overflows = Overflows(scaler)
    for _ in range(MOST_OVERFLOWS):
        assert overflows.met(overflowing(weight, optimizer, scaler, by=float("nan")))
    with pytest.raises(ValueError, match=r"overflowed 31 times in a row.*lower `train.learning_rate`"):
        overflows.met(overflowing(weight, optimizer, scaler, by=float("nan")))


def test_without_a_scaler_no_step_is_repeated() -> None:
    assert not Overflows(None).met(torch.tensor(float("nan")))  # the history reports the error


class Overflowing(torch.amp.GradScaler):
    """A loss scaler that makes the losses with the given numbers, counted from 1, overflow."""

    def __init__(self, *at: int) -> None:
        super().__init__("cpu")
        self.losses, self.at = 0, at

    def scale(self, loss: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        self.losses += 1
        return super().scale(loss) * (float("inf") if self.losses in self.at else 1.0)


def trained_with(scaler: torch.amp.GradScaler, project: Project, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Trains with loss scaling as in fp16, but in fp32, so that it runs on any CPU; returns the files that it writes."""

    def scaling(*arguments: Any) -> Any:
        accelerator = make_accelerator(*arguments)
        accelerator.scaler, accelerator.native_amp, accelerator.state._mixed_precision = scaler, True, "fp16"
        accelerator.autocast_handler = AutocastKwargs(enabled=False)
        return accelerator

    monkeypatch.setattr("t2i.train.engines.torch.engine.make_accelerator", scaling)
    project.train()
    data = project.folder / "data"
    left = files(data)
    for path in (data / "model", data / "validation", *data.glob("work/train-*")):
        shutil.rmtree(path)
    return left


def test_overflows_change_only_the_loss_scale(project, monkeypatch) -> None:
    project.fetch_and_encode()
    wanted = trained_with(Overflowing(), project, monkeypatch)
    found = trained_with(Overflowing(1, 4, 5), project, monkeypatch)
    (counts,) = (name for name in wanted if name.endswith("step-00000006/counts.safetensors"))
    before, after = load(wanted[counts]), load(found[counts])
    assert (before["scaler/scale"], after["scaler/scale"]) == (2**16, 2**13)
    assert before["ema_updates"] == after["ema_updates"]
    changed = {name for name in wanted if found[name] != wanted[name]}
    assert {name.rpartition("/")[2] for name in changed} <= {"counts.safetensors", "MANIFEST.json"}
    assert found.keys() == wanted.keys()


def test_attention_and_checkpointing_follow_runtime(tiny_base) -> None:
    runtime = load_section(ROOT / "params.yaml", "runtime", Runtime).model_copy(
        update={"device": "cpu", "gradient_checkpointing": True}
    )
    unet = prepared_unet(Family(tiny_base), runtime, "fp32", random=False)
    assert unet.training
    assert unet.is_gradient_checkpointing
    assert {type(processor).__name__ for processor in unet.attn_processors.values()} == {"AttnProcessor2_0"}


@pytest.mark.parametrize(("precision", "attention"), [("fp32", "sdpa"), ("bf16", "eager")])
def test_attention_on_a_cpu_follows_the_precision(precision, attention) -> None:
    runtime = load_section(ROOT / "params.yaml", "runtime", Runtime).model_copy(update={"device": "cpu"})
    assert runtime.attention_here(precision) == attention


def test_xformers_without_a_gpu_is_refused(tiny_base) -> None:
    runtime = load_section(ROOT / "params.yaml", "runtime", Runtime).model_copy(update={"attention": "xformers"})
    with pytest.raises(ValueError, match=r"`runtime.attention` is xformers, which does not work here .*set .* to auto"):
        prepared_unet(Family(tiny_base), runtime, "fp32", random=False)


def settings(*, train: dict[str, Any] | None = None, runtime: dict[str, Any] | None = None) -> tuple[Train, Runtime]:
    """Returns the sections of params.yaml, with changes."""
    sections = load_section(ROOT / "params.yaml", "train", Train), load_section(ROOT / "params.yaml", "runtime", Runtime)
    return sections[0].model_copy(update=train or {}), sections[1].model_copy(update=runtime or {})


@pytest.mark.parametrize("there", ["mps", "xpu"])
def test_xformers_needs_cuda(machine_with, there) -> None:
    machine_with(there)
    with pytest.raises(ValueError, match=rf"`runtime.attention` is xformers.*the device is {there}.*to auto"):
        check_settings(*settings(runtime={"attention": "xformers"}))


@pytest.mark.parametrize("there", [None, "mps", "xpu"])
def test_adamw_8bit_needs_cuda(machine_with, there) -> None:
    machine_with(there)
    train, runtime = settings()
    optimizer = train.optimizer.model_copy(update={"name": "adamw_8bit"})
    with pytest.raises(ValueError, match=rf"`train.optimizer.name` is adamw_8bit.*is {there or 'cpu'}: set it to adamw"):
        check_settings(train.model_copy(update={"optimizer": optimizer}), runtime)


@pytest.mark.parametrize("there", ["cuda", "mps", "xpu"])
def test_every_accelerator_trains_in_fp16(machine_with, there) -> None:
    machine_with(there)
    assert check_settings(*settings(train={"precision": "fp16"}))


def test_fp16_on_a_cpu_is_refused(machine_with) -> None:
    machine_with("cuda")
    with pytest.raises(ValueError, match=r"`train.precision` fp16 .*bf16 or fp32"):
        check_settings(*settings(train={"precision": "fp16"}, runtime={"device": "cpu"}))


def test_bf16_on_mps_needs_macos_14(machine_with, monkeypatch) -> None:
    machine_with("mps")
    for version, wanted in (((13, 5), False), ((14, 0), True)):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *least, version=version: version >= least)
        if wanted:
            check_settings(*settings(train={"precision": "bf16"}))
            continue
        with pytest.raises(ValueError, match=r"`train.precision` bf16 .*macOS 14.*fp16 or fp32"):
            check_settings(*settings(train={"precision": "bf16"}))


def test_several_processes_on_mps_are_refused(machine_with, monkeypatch) -> None:
    machine_with("mps")
    assert check_settings(*settings())
    with pytest.raises(ValueError, match=r"mps: set `runtime.processes` to 1, or `runtime.device` to cpu"):
        check_settings(*settings(runtime={"processes": 2}))
    group = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="several processes cannot train on mps"):
        check_settings(*settings())


@pytest.mark.parametrize("xccl", [False, True])
def test_several_processes_on_xpu_need_xccl(machine_with, monkeypatch, xccl) -> None:
    machine_with("xpu")
    monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: xccl)
    assert check_settings(*settings())
    if xccl:
        assert check_settings(*settings(runtime={"processes": 2}))
        return
    with pytest.raises(ValueError, match=r"XCCL.*set `runtime.processes` to 1"):
        check_settings(*settings(runtime={"processes": 2}))


def test_accelerate_computes_on_the_chosen_device(machine_with) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    machine_with("xpu")
    runtime = settings()[1]
    assert make_accelerator("fp32", runtime.model_copy(update={"device": "cpu"})).device.type == "cpu"
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=r"`runtime.device` is xpu here, but Accelerate chooses cpu"):
        make_accelerator("fp32", runtime)  # Accelerate finds no xpu on the machine of the tests
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_resume_takes_over_the_number_of_threads(two_threads, capsys) -> None:
    take_over_threads(1, torch.device("cpu"))
    assert torch.get_num_threads() == 1
    assert capsys.readouterr().err == ""


def test_threads_that_cannot_be_taken_over_are_said(two_threads, capsys, monkeypatch) -> None:
    take_over_threads(4096, torch.device("cpu"))
    assert torch.get_num_threads() == 2
    assert "OMP_NUM_THREADS=4096" in capsys.readouterr().err
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's own setting
    take_over_threads(1, torch.device("cpu"))
    assert torch.get_num_threads() == 2
    assert "OMP_NUM_THREADS=1" in capsys.readouterr().err


def test_threads_do_not_matter_on_a_gpu(two_threads, capsys) -> None:
    take_over_threads(1, torch.device("cuda"))
    assert torch.get_num_threads() == 2
    assert capsys.readouterr().err == ""
