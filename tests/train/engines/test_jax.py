"""The engine `jax` beside `torch`; each run of JAX is a fork, since torchax changes PyTorch in its process."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i.core.params import load_section
from t2i.data.cached import CachedRecords
from t2i.model.family import load_family
from t2i.model.runtime import Runtime
from t2i.train import engine
from t2i.train.engine import Tensors, check_settings, prepare
from t2i.train.section import Train
from tests import tiny
from tests.projects import LORA, PLAIN, ROOT, Project, trained
from tests.victims import Victim, command, victim

here = pytest.mark.skipif(importlib.util.find_spec("torchax") is None, reason="needs the extra `jax`")
V_PREDICTION: dict[str, Any] = {"prediction_type": "v_prediction"}
SETTINGS: dict[str, Any] = {"steps": 20, "warmup_steps": 0, "learning_rate": 1e-4, "trainable": ""}
FIGURES = ("loss", "mse", "grad_norm")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "min_snr": {"weighting": {"name": "min_snr", "gamma": 5.0}},
    "soft_min_snr": {"weighting": {"name": "soft_min_snr", "gamma": 5.0}, "timesteps": {"name": "later", "portion": 0.25}},
    "debiased": {"weighting": {"name": "debiased"}, "noise_offset": 0.1},
    "dream": {"dream_detail_preservation": 1.0, "input_perturbation": 0.1},
    "zero_terminal_snr": V_PREDICTION | {"zero_terminal_snr": True, "weighting": {"name": "min_snr", "gamma": 5.0}},
}
OBJECTIVES["soft_min_snr"]["timesteps"] |= {"multiplier": 4.0}


def prepared(project: Project, kind: str, train: dict[str, Any], runtime: dict[str, Any]) -> Any:
    """A run on the project's caches with an engine."""
    AcceleratorState._reset_state(reset_partial_state=True)
    project.params["train"] |= SETTINGS | train
    project.params["runtime"] |= {"engine": kind, "tf32": False} | runtime
    project.write()
    params_file, data = project.folder / "params.yaml", project.folder / "data"
    section = load_section(params_file, "train", Train)
    family = load_family(project.params["base"]["family"], data / "base", section.objective.scheduler_changes())
    records = CachedRecords(data / "latents", data / "embeds", "train")
    return prepare(section, load_section(params_file, "runtime", Runtime), family, records)


def taken(
    project: Project,
    kind: str,
    steps: range,
    *,
    train: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
    after: Tensors | None = None,
) -> Tensors:
    """Takes steps in this process, after those of a state; returns the state, and the figures of the steps."""
    run = prepared(project, kind, train or {}, runtime or {})
    assert isinstance(run, engine.Prepared)
    if after is not None:
        run.restore(after)
    figures = [run.take_step(step) for step in steps]
    rows = {name: torch.tensor([float(getattr(row, name)) for row in figures]) for name in FIGURES}
    run.close()
    return {"figures": rows} | {
        group: {name: tensor.detach().clone() for name, tensor in its.items()} for group, its in run.state().items()
    }


def in_a_fork(action: Callable[[], Tensors], devices: int = 1) -> Tensors:
    """Returns what an action returns that needs JAX, which finds this number of devices."""

    def kept() -> None:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        for group, its in action().items():
            save_file({name: tensor.contiguous() for name, tensor in its.items()}, f"{group}.found")

    ended = victim(kept)
    assert ended.code == 0, ended.said
    found = {path.stem: load_file(path) for path in Path().glob("*.found")}
    for path in Path().glob("*.found"):
        path.unlink()
    return found


def relative(one: Tensor, other: Tensor) -> float:
    """Returns the L2 norm of a difference, divided by that of the first tensor."""
    return float((one.double() - other.double()).norm() / one.double().norm().clamp_min(1e-30))


def assert_same(found: Tensors, wanted: Tensors, *, figures: float = 1e-5, weights: float = 1e-4) -> None:
    """Checks names and types, and values within relative tolerances."""
    assert {group: its.keys() for group, its in found.items()} == {group: its.keys() for group, its in wanted.items()}
    for name in FIGURES:
        torch.testing.assert_close(found["figures"][name], wanted["figures"][name], rtol=figures, atol=0)
    for group in wanted.keys() - {"figures"}:
        for name, tensor in wanted[group].items():
            assert (found[group][name].dtype, found[group][name].shape) == (tensor.dtype, tensor.shape), name
            assert relative(tensor, found[group][name]) < weights, (group, name)


@pytest.fixture
def simple(tmp_path: Path, tiny_base: Path, project: Project) -> Project:
    """A project whose UNet has no attention."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "simple"))
    tiny.simplify_unet(base)
    project.params["base"] |= {"local": str(base), "clip": str(base / "clip")}
    project.write()
    project.fetch_and_encode()
    return project


@here
@pytest.mark.slow
@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl"])
def test_twenty_steps_are_those_of_torch(project, tiny_sdxl, family) -> None:
    if family == "sdxl":
        project.params["base"] |= {"family": family, "local": str(tiny_sdxl), "clip": str(tiny_sdxl / "clip")}
        project.write()
    project.fetch_and_encode()
    wanted = taken(project, "torch", range(20))
    assert_same(in_a_fork(lambda: taken(project, "jax", range(20))), wanted)
    if family == "sdxl":
        return
    half = {kind: in_a_fork(partial(taken, project, kind, range(10))) for kind in ("torch", "jax")}
    for first, second in (("torch", "jax"), ("jax", "torch")):
        found = in_a_fork(partial(taken, project, second, range(10, 20), after=half[first]))
        both = {name: torch.cat([half[first]["figures"][name], found["figures"][name]]) for name in FIGURES}
        assert_same(found | {"figures": both}, wanted)


@here
@pytest.mark.slow
def test_every_objective_is_that_of_torch_on_one_and_two_devices(simple) -> None:
    def of_each(kind: str) -> Tensors:
        found: Tensors = {}
        for objective, changes in OBJECTIVES.items():
            state = taken(simple, kind, range(3), train={"objective": PLAIN | changes})
            for group in ("figures", "unet"):
                found.setdefault(group, {}).update({f"{objective}/{name}": t for name, t in state[group].items()})
        return found

    wanted, one, two = of_each("torch"), in_a_fork(lambda: of_each("jax")), in_a_fork(lambda: of_each("jax"), devices=2)
    for name, figures in wanted["figures"].items():
        torch.testing.assert_close(
            one["figures"][name], figures, rtol=1e-5, atol=0, msg=lambda said, name=name: f"{name}: {said}"
        )
        torch.testing.assert_close(two["figures"][name], one["figures"][name], rtol=1e-6, atol=0)
    assert all(relative(weight, one["unet"][name]) < 1e-4 for name, weight in wanted["unet"].items())
    assert all(relative(weight, two["unet"][name]) < 1e-5 for name, weight in one["unet"].items())


@here
@pytest.mark.slow
def test_a_lora_with_dropout_in_micro_batches_is_that_of_torch(project) -> None:
    project.fetch_and_encode()
    how: dict[str, Any] = {"train": LORA, "runtime": {"micro_batch_size": 2}}
    wanted = taken(project, "torch", range(5), **how)
    found = in_a_fork(lambda: taken(project, "jax", range(5), **how))
    assert_same(found, wanted, weights=1e-3)  # B begins at zero, where AdamW moves the smallest gradients by their signs


@here
@pytest.mark.slow
def test_gradient_checkpointing_changes_rounding_alone(simple) -> None:
    wanted = taken(simple, "torch", range(3))
    assert_same(in_a_fork(lambda: taken(simple, "jax", range(3), runtime={"gradient_checkpointing": True})), wanted)


@here
@pytest.mark.slow
def test_bf16_is_near_that_of_torch(simple) -> None:
    exact, wanted = (taken(simple, "torch", range(3), train={"precision": precision}) for precision in ("fp32", "bf16"))
    found = in_a_fork(lambda: taken(simple, "jax", range(3), train={"precision": "bf16"}))
    assert found["unet"].keys() == wanted["unet"].keys()
    torch.testing.assert_close(found["figures"]["loss"], wanted["figures"]["loss"], rtol=1e-2, atol=0)
    assert not torch.equal(found["figures"]["loss"], exact["figures"]["loss"])


@here
@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_bits(simple) -> None:
    simple.params["runtime"] |= {"engine": "jax", "checkpoint_every_seconds": 1e-3}
    simple.write()

    def steps(event: Callable[[], None]) -> None:
        from t2i.train.engines.jax.engine import Prepared

        take = Prepared.take_step
        Prepared.take_step = lambda self, step: (event(), take(self, step))[1]  # type: ignore[method-assign, func-returns-value]

    def gone() -> None:
        for path in (
            Path("data/model"),
            Path("data/validation"),
            Path("data/reports/train"),
            *Path("data/work").glob("train-*"),
        ):
            shutil.rmtree(path)

    alone = victim(command("train"), steps)
    assert (alone.code, alone.events) == (0, simple.params["train"]["steps"]), alone.said
    wanted = trained(simple)
    gone()
    assert victim(command("train"), steps, {5: signal.SIGKILL}).code == 128 + signal.SIGKILL
    again = victim(command("train"), steps)
    assert (again.code, again.events) == (0, 2), again.said
    assert trained(simple) == wanted
    gone()
    stopped = victim(command("train"), steps, {4: signal.SIGTERM})
    assert stopped.code == 128 + signal.SIGTERM
    assert "stopped after step 3 of 6" in stopped.said
    assert victim(command("train")).code == 0
    assert trained(simple) == wanted


@here
@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(simple) -> None:
    simple.params["runtime"] |= {"engine": "jax", "log_every_steps": 1}
    simple.write()
    assert victim(command("train")).code == 0
    history = Path("data/reports/train/history.csv")
    alone = [list(map(float, line.split(","))) for line in history.read_text(encoding="utf-8").splitlines()[1:]]
    for path in (Path("data/model"), *Path("data/work").glob("train-*")):
        shutil.rmtree(path)
    history.unlink()
    words = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    ended = subprocess.run(
        [sys.executable, *words, "-m", "stages.train"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "JAX on 2 x cpu" in ended.stderr
    together = [list(map(float, line.split(","))) for line in history.read_text(encoding="utf-8").splitlines()[1:]]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=1e-5, atol=0)


@here
def test_draws_have_the_integers_of_torch() -> None:
    def action() -> Tensors:
        import jax
        from torchax import default_env

        from t2i.data.counter import key_of, normals, words_on
        from t2i.train.engines.jax.devices import tensor_of

        key, places = key_of(3, "noise"), range(5, 9)

        def drawn(step: Any, of_place: Any) -> Any:
            with default_env():
                one, all_places = default_env().j2t_iso((step, of_place))
                words = torch.stack(words_on("jax", key, one, all_places, 7))
                return default_env().t2j_iso((words, normals(key, one, all_places, (4, 3, 5), "jax")))

        words, noise = map(tensor_of, jax.jit(drawn)(jax.numpy.int32(11), jax.numpy.arange(5, 9, dtype=jax.numpy.int32)))
        assert torch.equal(words, torch.stack(words_on("cpu", key, 11, places, 7)))
        torch.testing.assert_close(noise, normals(key, 11, places, (4, 3, 5), "cpu"), rtol=0, atol=1e-6)
        return {}

    in_a_fork(action)


def settings(*, train: dict[str, Any] | None = None, runtime: dict[str, Any] | None = None) -> tuple[Train, Runtime]:
    """Returns the sections of params.yaml for JAX, with changes."""
    sections = load_section(ROOT / "params.yaml", "train", Train), load_section(ROOT / "params.yaml", "runtime", Runtime)
    return sections[0].model_copy(update=train or {}), sections[1].model_copy(update={"engine": "jax"} | (runtime or {}))


@here
@pytest.mark.parametrize(
    ("train", "runtime", "said"),
    [
        ({"precision": "fp16"}, {}, r"`train.precision` is fp16.*set it to bf16 or fp32"),
        ({}, {"attention": "xformers"}, r"`runtime.attention` is xformers.*set it to auto"),
        ({}, {"ema_device": "cpu"}, r"`runtime.ema_device` is cpu.*set it to null"),
        ({}, {"processes": 2}, r"`runtime.processes` is 2.*set it to 1"),
        ({}, {"device": "mps"}, r"`runtime.device` is mps.*set it to auto, cpu"),
    ],
)
def test_settings_without_meaning_are_refused(train, runtime, said) -> None:
    with pytest.raises(ValueError, match=said):
        check_settings(*settings(train=train, runtime=runtime))


def test_a_missing_extra_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"`runtime.engine` is jax, but jax and torchax .*pip install 't2i\[jax\]'.*to torch"):
        check_settings(*settings())


@here
def test_batches_divide_into_equal_parts_on_every_device() -> None:
    from t2i.train.engines.jax.settings import images_at_once

    section, runtime = settings(train={"batch_size": 24}, runtime={"micro_batch_size": 5})
    assert [images_at_once(section, runtime, devices) for devices in (1, 2, 8)] == [4, 4, 3]
    with pytest.raises(ValueError, match=r"`train.batch_size` 24 is not a multiple of the 5 devices"):
        images_at_once(section, runtime, 5)


def test_without_the_engine_nothing_of_it_is_imported(project) -> None:
    project.fetch_and_encode()

    def action() -> None:
        taken(project, "torch", range(1))
        check_settings(*settings(runtime={"engine": "torch"}))
        assert not any(name.startswith(("torchax", "t2i.train.engines.jax")) for name in sys.modules)  # jaxtyping imports jax

    ended = Victim(action).wait()
    assert ended.code == 0, ended.said
