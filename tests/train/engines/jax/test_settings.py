"""What the engine `jax` refuses before it starts, and how it divides a batch."""

import importlib.util
from typing import Any

import pytest

from t2i.core.params import load_section
from t2i.model.runtime import Runtime
from t2i.train.engine import check_settings
from t2i.train.section import Train
from tests.projects import ROOT

here = pytest.mark.skipif(importlib.util.find_spec("torchax") is None, reason="needs the extra `jax`")


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
