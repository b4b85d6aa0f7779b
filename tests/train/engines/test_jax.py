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

from t2i.train.engine import Tensors
from tests import tiny
from tests.projects import LORA, PLAIN, ROOT, Project, trained
from tests.steps import FIGURES, assert_same, in_a_fork, relative, taken
from tests.victims import command, victim

here = pytest.mark.skipif(importlib.util.find_spec("torchax") is None, reason="needs the extra `jax`")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "soft_min_snr": {"weighting": {"name": "soft_min_snr", "gamma": 5.0}, "noise_offset": 0.1}
    | {"timesteps": {"name": "later", "portion": 0.25, "multiplier": 4.0}},
    "dream": {"dream_detail_preservation": 1.0, "input_perturbation": 0.1, "weighting": {"name": "debiased"}},
    "zero_terminal_snr": {"prediction_type": "v_prediction", "zero_terminal_snr": True}
    | {"weighting": {"name": "min_snr", "gamma": 5.0}},
}


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


def test_without_the_engine_nothing_of_it_is_imported(project) -> None:
    project.fetch_and_encode()

    def action() -> None:
        taken(project, "torch", range(1))
        assert "torchax" not in sys.modules  # jax itself is imported by jaxtyping, where it checks shapes

    ended = victim(action)
    assert ended.code == 0, ended.said
