from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from t2i.data.cached import CachedRecords
from t2i.data.order import Epoch, shuffled
from tests.tiny import write_caches


@given(some.integers(1, 3000), some.integers(0, 2**40), some.integers(0, 5))
def test_an_epoch_is_a_permutation(count, seed, epoch) -> None:
    assert sorted(shuffled(np.arange(count), count, seed, epoch).tolist()) == list(range(count))


def test_places_of_a_huge_epoch_need_no_list() -> None:
    count = 10**12
    images = shuffled(np.arange(1000), count, 0, 0)
    assert images.max() < count
    assert len(np.unique(images)) == 1000
    assert abs(images.mean() / count - 0.5) < 0.05


def test_all_orders_of_few_records_are_equally_likely() -> None:
    seeds = 12000
    seen = Counter(tuple(shuffled(np.arange(4), 4, seed, 0).tolist()) for seed in range(seeds))
    assert len(seen) == 24
    assert sum((count - seeds / 24) ** 2 / (seeds / 24) for count in seen.values()) < 58  # chi-squared, 23 degrees, 0.01 %


def test_neighbours_and_their_images_are_not_related() -> None:
    count = 5000
    images = np.stack([shuffled(np.arange(count), count, seed, 0) for seed in range(40)])
    for one, other in (
        (images[:, :-1], images[:, 1:]),
        (images[:-1], images[1:]),
        (images, np.broadcast_to(np.arange(count), images.shape)),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(one.size)
    steps = np.bincount(np.diff(images, axis=1).ravel() % count, minlength=count)  # all differences are equally likely
    assert steps[1:].max() < 90


def test_epochs_and_seeds_have_other_orders() -> None:
    orders = {tuple(shuffled(np.arange(100), 100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(some.dictionaries(some.integers(0, 19), some.integers(2, 5)), some.integers(0, 9))
def test_an_epoch_has_each_record_as_often_as_it_repeats(repeats, seed) -> None:
    epoch = Epoch(20, repeats)
    wanted = Counter({record: repeats.get(record, 1) for record in range(20)})
    assert len(epoch) == wanted.total()
    visited = epoch.records(range(3 * len(epoch)), seed)
    for at in range(0, len(visited), len(epoch)):
        assert Counter(visited[at : at + len(epoch)]) == wanted


def test_repeats_are_those_of_the_keys(tmp_path) -> None:
    records = CachedRecords(*write_caches(tmp_path, repeats={"k3": 4, "k7": 2}), "train")
    counts = Counter(records.key(record) for record in records.epoch.records(range(14), seed=1))
    assert counts == {f"k{n}": {3: 4, 7: 2}.get(n, 1) for n in range(10)}


@pytest.mark.parametrize("length", [1, 7, 64])
def test_positions_may_be_asked_for_in_any_order(length) -> None:
    epoch = Epoch(23, {4: 3})
    positions = list(range(100, 100 + length))
    assert epoch.records(positions[::-1], 5) == epoch.records(positions, 5)[::-1]
