import pytest

from t2i.core.params import ParamsError, check, read_section
from t2i.train.section import Train
from tests.projects import ROOT

SECTION = read_section(ROOT / "params.yaml", "train")


def section(**changes) -> Train:
    return check(Train, SECTION | changes, "train")


def test_a_single_step_of_warmup_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"`warmup_steps` is 1 .*1 step.*`train.warmup_steps: 0`"):
        section(steps=1, warmup_steps=1)
    with pytest.raises(ValueError, match=r"`warmup_steps` is 50 .*1 step"):
        section(steps=None, epochs=1).total_steps(3)
    assert section(steps=1, warmup_steps=0).total_steps(3) == 1


def test_a_warmup_as_long_as_the_run_is_noted() -> None:
    (note,) = section(steps=20).notes(20)
    assert "`train.warmup_steps` is 50" in note
    assert "20 steps" in note
    assert section().notes(1400) == section(steps=51).notes(51) == []


def test_an_average_of_mostly_its_first_weights_is_noted() -> None:
    (note,) = section(ema=SECTION["ema"] | {"ramp": {"name": "none"}}).notes(1400)
    assert "87%" in note
    assert "`train.ema.decay`" in note


def test_an_order_has_a_name_and_windows_have_shards() -> None:
    assert section(order={"name": "windows", "shards": 3}).order.shards == 3
    for order, said in (
        ({"name": "global", "shards": 3}, "`train.order.shards`"),
        ({"name": "windows"}, "`train.order.shards`"),
        ({"name": "windows", "shards": 0}, "`train.order.shards`.* 1"),
        ({"name": "window", "shards": 3}, "`train.order.*windows"),
    ):
        with pytest.raises(ParamsError, match=said):
            section(order=order)
