"""Properties of parameters, orders, draws, selections, histories and crops, checked on inputs that hypothesis generates.

By default the inputs are few and always the same; HYPOTHESIS_PROFILE=long tries many others.
"""

import csv
import io
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from t2i.core.params import ParamsError, check, load_section
from t2i.data.batches import Batch, Batches, Draws, micro_batches
from t2i.data.cached import CachedRecords
from t2i.data.chance import hash_fraction
from t2i.data.order import Global, Order, Windows
from t2i.data.pixels import view
from t2i.data.records import split_of
from t2i.fetch.selection import Kept, Selection
from t2i.tools.sections import MODELS
from t2i.train.history import COLUMNS, Figures, History
from tests.projects import ROOT
from tests.tiny import write_caches

TEXT = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def section_of(params: dict[str, Any], section: str) -> Any:
    for name in section.split("."):
        params = params[name]
    return params


def places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of each key of a section and of each entry of its lists."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*above, key)
        yield from places(value, (*above, key))


PLACES = [(section, place) for section in MODELS for place in places(section_of(TEXT, section))]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2),
    max_leaves=4,
)
SEEDS = st.integers(0, 2**31)


def edited(section: str, place: tuple[Any, ...], value: Any, rename: str | None = None) -> Any:
    """Returns a section with another value at a place, or with the last key of the place renamed."""
    copy = YAML(typ="safe").load(io.StringIO(dumped(section_of(TEXT, section))))
    node = copy
    for key in place[:-1]:
        node = node[key]
    if rename is None:
        node[place[-1]] = value
    else:
        node[rename] = node.pop(place[-1])
    return copy


def dumped(node: Any) -> str:
    file = io.StringIO()
    YAML(typ="safe").dump(node, file)
    return file.getvalue()


def complaint_about(section: str, content: Any) -> str:
    """Returns the error message for a section, or an empty string if it is valid."""
    try:
        check(MODELS[section], content, section)
    except ParamsError as error:
        return str(error)
    return ""


@given(st.sampled_from(PLACES), JUNK)
def test_any_value_is_accepted_or_refused_with_its_path(at, value) -> None:
    section, place = at
    said = complaint_about(section, edited(section, place, value))
    *above, key = [section, *(part for part in place if isinstance(part, str))]
    holder = ".".join(above or [key])
    tagged = key == "name" and (f"`{holder}." in said or "module of t2i" in said)  # another choice has other keys
    assert not said or f"`{holder}.{key}" in said or f"`{holder}`" in said or tagged
    assert "\n" not in said


@given(st.sampled_from([at for at in PLACES if isinstance(at[1][-1], str)]), st.text(min_size=1, max_size=20))
def test_a_renamed_key_is_refused_with_its_path(at, name) -> None:
    section, place = at
    assume(name not in {key for _, other in PLACES for key in other})
    said = complaint_about(section, edited(section, place, None, rename=name))
    above = ".".join([section, *(str(part) for part in place[:-1])])
    assert f"`{above}.{name}`" in said or f"`{above}`" in said


@given(st.sampled_from(sorted(MODELS)), st.integers(1, 10**6), st.floats(1e-12, 1e3))
def test_a_section_survives_writing_and_reading(section, number, rate) -> None:
    whole = dict(TEXT, train=TEXT["train"] | {"steps": number, "learning_rate": rate, "seed": -number})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "params.yaml").write_text(dumped(whole), encoding="utf-8")
        read: Any = load_section(Path(folder) / "params.yaml", section, MODELS[section])
        assert check(MODELS[section], read.model_dump(), section) == read
        assert section != "train" or (read.steps, read.learning_rate, read.seed) == (number, rate, -number)


@cache
def caches() -> tuple[Path, Path]:
    return write_caches(Path(tempfile.mkdtemp()), per_shard=3)


ORDERS = st.just(Global(name="global")) | st.builds(Windows, name=st.just("windows"), shards=st.integers(1, 5))


def batches(order: Order, batch_size: int, seed: int) -> Batches:
    return Batches(
        CachedRecords(*caches(), "train"),
        order=order,
        batch_size=batch_size,
        use_flips=True,
        view_conditioning=lambda geometry, latents: {},
        prompt_dropout=0.25,
        timesteps_at=lambda uniform: (uniform * 1000).astype(int),
        noise_offset=0.1,
        input_perturbation=0.1,
        seed=seed,
    )


def tensors(batches: list[Batch]) -> dict[str, torch.Tensor]:
    draws = {field.name: torch.cat([getattr(batch.draws, field.name) for batch in batches]) for field in fields(Draws)}
    conditioning = torch.cat([batch.conditioning["hidden"] for batch in batches])
    return draws | {"moments": torch.cat([batch.moments for batch in batches]), "hidden": conditioning}


@given(ORDERS, st.integers(1, 4), st.integers(1, 4), st.none() | st.integers(1, 9), st.integers(0, 50), SEEDS)
def test_processes_and_micro_batches_do_not_change_a_batch(order, processes, share, size, step, seed) -> None:
    own = batches(order, processes * share, seed)
    shares = [places for rank in range(processes) for places in micro_batches(processes * share, rank, processes, size)]
    assert [place for places in shares for place in places] == list(range(processes * share))
    assert all(len(places) <= (size or share) for places in shares)
    whole, parts = tensors([own.of_step(step, range(processes * share))]), tensors([own.of_step(step, s) for s in shares])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@given(ORDERS, st.integers(1, 6), st.integers(0, 20), SEEDS)
def test_the_order_does_not_depend_on_the_batch_size(order, batch_size, step, seed) -> None:
    own = batches(order, batch_size, seed)
    seen = own.of_step(step, range(batch_size)).moments[:, 1, 0, 0].tolist()  # the moments hold the number of the record
    assert seen == own.epoch.records(range(step * batch_size, (step + 1) * batch_size), seed)


IDENTITIES = st.lists(st.text(max_size=8), unique=True, max_size=40)


@given(IDENTITIES, st.floats(0, 1), st.floats(0, 1))
def test_a_split_only_grows_with_its_fraction(identities, one, other) -> None:
    few, many = sorted((one, other))
    assert all(0 <= hash_fraction(identity) < 1 for identity in identities)
    heldout = [{name for name in identities if split_of(name, share) == "heldout"} for share in (0.0, few, many, 1.0)]
    assert heldout[0] == set()
    assert heldout[1] <= heldout[2] <= heldout[3] == set(identities)


def selected(identities: list[str], most: int | None, seed: int) -> set[str]:
    selection = Selection(most, seed)
    for identity in identities:
        if identity not in selection.kept and selection.takes(rank := selection.rank(identity)):
            selection.add(Kept(identity, identity, rank, ("x",), "png", 0, 0))
    return set(selection.kept)


@given(IDENTITIES, IDENTITIES, st.none() | st.integers(1, 12), SEEDS, st.randoms())
def test_a_selection_has_the_lowest_ranks_in_any_order(old, new, most, seed, chance) -> None:
    new = [identity for identity in new if identity not in old]
    few, many = selected(old, most, seed), selected(old + new, most, seed)
    shuffled = chance.sample(old + new, len(old + new))
    assert selected(shuffled + shuffled[:5], most, seed) == many
    assert many == set(sorted(old + new, key=Selection(most, seed).rank)[:most])
    assert many & set(old) <= few


NUMBERS = st.floats(-1e6, 1e6, width=32)


def figures(loss: float, mse: float, grad_norm: float, learning_rate: float) -> Figures:
    return Figures(torch.tensor(loss), torch.tensor(mse), torch.tensor(grad_norm), learning_rate)


@given(st.lists(st.builds(figures, *[NUMBERS] * len(COLUMNS)), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 30))
def test_a_history_is_the_same_after_any_interruption(rows, steps, cut) -> None:
    whole, first = History(), History()
    for row in rows:
        whole.append(row)
    for row in rows[:cut]:
        first.append(row)
    resumed = History(first.tensor())
    for row in rows[cut:]:
        resumed.append(row)
    assert resumed.csv(steps) == whole.csv(steps)
    windows = whole.windows(steps)
    assert [window["step"] for window in windows] == [*range(steps, len(rows), steps), len(rows)]
    read = list(csv.DictReader(io.StringIO(whole.csv(steps))))
    for window, line in zip(windows, read, strict=True):
        assert {name: float(value) for name, value in line.items()} == {
            name: pytest.approx(value, rel=1e-5) for name, value in window.items()
        }
    lengths = [window["step"] - before for window, before in zip(windows, [0, *(w["step"] for w in windows)], strict=False)]
    total = sum(window["loss"] * length for window, length in zip(windows, lengths, strict=True))
    assert total == pytest.approx(sum(float(row.loss) for row in rows), rel=1e-4, abs=1e-2)


SIDE, PX = st.integers(1, 300), st.integers(1, 64)


@given(SIDE, SIDE, PX, PX, st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]), st.data())
def test_a_view_spans_one_side_of_its_image(width, height, across, down, interpolation, data) -> None:
    place, flipped = data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))), data.draw(st.booleans())
    seen = view(Image.new("RGB", (width, height), "#336699"), (down, across), interpolation, place, flipped)
    assert seen.pixels.shape == (3, down, across)
    scale = max(down / height, across / width)
    top, left = seen.geometry.crop
    assert 0 <= top <= max(down, round(height * scale)) - down
    assert 0 <= left <= max(across, round(width * scale)) - across
    assert min(top, left) == 0
    assert (seen.geometry.original_size, seen.geometry.flipped) == ((height, width), flipped)
    colour = torch.tensor([0x33, 0x66, 0x99]) / 127.5 - 1
    torch.testing.assert_close(seen.pixels, colour.view(3, 1, 1).expand(3, down, across))
