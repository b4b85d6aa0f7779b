import hashlib
from collections import Counter
from itertools import islice, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from t2i.data.cached import CachedRecords
from t2i.data.counter import key_of
from t2i.data.order import Epoch, Global, Order, Window, Windows, shuffled
from tests.tiny import write_caches

GLOBAL = Global(name="global")


def windows(shards: int) -> Windows:
    return Windows(name="windows", shards=shards)


def permutation(count: int, seed: int, epoch: int) -> list[int]:
    return shuffled(np.arange(count), count, key_of(seed, "order", epoch)).tolist()


@given(some.integers(1, 3000), some.integers(0, 2**40), some.integers(0, 5))
def test_numbers_are_permuted(count, seed, epoch) -> None:
    assert sorted(permutation(count, seed, epoch)) == list(range(count))


def test_places_of_a_huge_epoch_need_no_list() -> None:
    count = 10**12
    images = shuffled(np.arange(1000), count, key_of(0))
    assert images.max() < count
    assert len(np.unique(images)) == 1000
    assert abs(images.mean() / count - 0.5) < 0.05


def test_all_orders_of_few_records_are_equally_likely() -> None:
    seeds = 12000
    seen = Counter(tuple(permutation(4, seed, 0)) for seed in range(seeds))
    assert len(seen) == 24
    assert sum((count - seeds / 24) ** 2 / (seeds / 24) for count in seen.values()) < 58  # chi-squared, 23 degrees, 0.01 %


def test_neighbours_and_their_images_are_not_related() -> None:
    count = 5000
    images = np.stack([permutation(count, seed, 0) for seed in range(40)])
    for one, other in (
        (images[:, :-1], images[:, 1:]),
        (images[:-1], images[1:]),
        (images, np.broadcast_to(np.arange(count), images.shape)),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(one.size)
    steps = np.bincount(np.diff(images, axis=1).ravel() % count, minlength=count)  # all differences are equally likely
    assert steps[1:].max() < 90


def test_epochs_and_seeds_have_other_orders() -> None:
    orders = {tuple(permutation(100, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


SIZES = some.lists(some.integers(0, 9), min_size=1, max_size=8).filter(any)
REPEATS = some.dictionaries(some.integers(0, 72), some.integers(1, 4), max_size=4)
ORDERS = some.just(GLOBAL) | some.builds(windows, some.integers(1, 9))
SEEDS = some.integers(0, 2**40)


def made(sizes: list[int], repeats: dict[int, int], order: Order) -> Epoch:
    return Epoch(sizes, {record: count for record, count in repeats.items() if record < sum(sizes)}, order)


@given(SIZES, REPEATS, ORDERS, SEEDS)
def test_an_epoch_has_each_record_as_often_as_it_repeats(sizes, repeats, order, seed) -> None:
    epoch = made(sizes, repeats, order)
    wanted = Counter({record: repeats.get(record, 1) for record in range(sum(sizes))})
    assert len(epoch) == wanted.total()
    visited = epoch.records(range(3 * len(epoch)), seed)
    for at in range(0, len(visited), len(epoch)):
        assert Counter(visited[at : at + len(epoch)]) == wanted


@given(SIZES, REPEATS, ORDERS, SEEDS, some.integers(0, 200), some.integers(1, 50))
def test_an_epoch_may_be_entered_at_any_position(sizes, repeats, order, seed, start, length) -> None:
    whole = made(sizes, repeats, order).records(range(start + length), seed)
    epoch, positions = made(sizes, repeats, order), range(start, start + length)
    assert epoch.records(positions[::-1], seed) == whole[start:][::-1]
    assert epoch.records(positions, seed) == whole[start:]


def epoch_of(epoch: Epoch, number: int, seed: int) -> list[Window]:
    """The windows of an epoch."""
    found = list(islice(epoch.windows_from(number * len(epoch), seed), 20))
    return [window for window in found if window.start < (number + 1) * len(epoch)]


@given(SIZES, REPEATS, some.integers(1, 9), SEEDS, some.integers(0, 4))
def test_windows_divide_the_shards_of_every_epoch(sizes, repeats, count, seed, number) -> None:
    epoch = made([size + 1 for size in sizes], repeats, windows(count))
    found = epoch_of(epoch, number, seed)
    assert sorted(shard for window in found for shard in window.shards) == list(range(len(sizes)))
    assert all(len(window.shards) == count for window in found[:-1])
    assert len(found) == -(-len(sizes) // count)
    assert (found[0].start, found[-1].end) == (number * len(epoch), (number + 1) * len(epoch))
    assert all(window.end == following.start for window, following in pairwise(found))


@given(SIZES, REPEATS, ORDERS, SEEDS)
def test_a_window_has_all_records_of_its_shards(sizes, repeats, order, seed) -> None:
    epoch = made(sizes, repeats, order)
    shard_of = np.repeat(range(len(sizes)), sizes)
    wanted = Counter(shard for record, shard in enumerate(shard_of.tolist()) for _ in range(repeats.get(record, 1)))
    for window in islice(epoch.windows_from(0, seed), 20):
        seen = Counter(shard_of[epoch.records(range(window.start, window.end), seed)].tolist())
        assert seen == {shard: wanted[shard] for shard in window.shards.tolist() if wanted[shard]}


@given(SIZES, REPEATS, ORDERS, SEEDS, some.integers(0, 60))
def test_windows_start_with_that_of_the_position(sizes, repeats, order, seed, position) -> None:
    epoch = made([size + 1 for size in sizes], repeats, order)
    found = list(islice(epoch.windows_from(position, seed), 9))
    assert found[0].start <= position < found[0].end
    whole = list(islice(epoch.windows_from(0, seed), found[-1].number + 1))
    assert [window.number for window in whole] == list(range(len(whole)))
    assert list(map(str, found)) == list(map(str, whole[-9:]))


def test_blocks_of_places_may_cross_windows() -> None:
    sizes = [700, 700, 1, 2500, 700, 13]
    starts, epoch = np.cumsum([0, *sizes]), Epoch(sizes, {}, windows(1))
    visited = epoch.records(range(2 * len(epoch)), 6)
    for window in islice(epoch.windows_from(0, 6), 12):
        (shard,) = window.shards
        its = visited[window.start : window.end]
        assert sorted(its) == list(range(starts[shard], starts[shard + 1]))
        assert len(its) < 3 or its != sorted(its)


def test_one_window_holds_all_shards_if_there_are_few() -> None:
    visited = {count: Epoch([5] * 4, {7: 3}, windows(count)).records(range(66), 3) for count in (3, 4, 5, 10**12)}
    assert visited[4] == visited[5] == visited[10**12] != visited[3]
    assert [len(window.shards) for window in epoch_of(Epoch([5] * 4, {}, windows(9)), 2, 3)] == [4]


def test_shards_and_records_have_other_orders_in_each_epoch() -> None:
    epoch = Epoch([10] * 50, {}, windows(1))
    found = [(seed, window) for seed in range(3) for window in islice(epoch.windows_from(0, seed), 150)]
    shards = {tuple(int(window.shards[0]) for _, window in found[at : at + 50]) for at in range(0, 450, 50)}
    records = {tuple(n % 10 for n in epoch.records(range(window.start, window.end), seed)) for seed, window in found}
    assert (len(shards), len(records)) == (9, 450)


def test_the_global_order_is_that_of_all_records() -> None:
    visited = [Epoch(sizes, {}, GLOBAL).records(range(69), 8) for sizes in ([23], [7, 0, 15, 1], [1] * 23)]
    assert visited[0] == visited[1] == visited[2] == [record for epoch in range(3) for record in permutation(23, 8, epoch)]


def test_the_global_order_never_changes() -> None:
    assert Epoch([23], {4: 3}, GLOBAL).records(range(20, 32), 5) == [19, 22, 11, 3, 4, 6, 4, 17, 10, 1, 21, 18]
    many = np.array(Epoch([1000] * 5, {40: 3, 4999: 2}, GLOBAL).records(range(12000), 7), "<i8")
    assert hashlib.sha256(many.tobytes()).hexdigest() == "26aeb897aee31e12af7227e3e50520959ea7af912026f67228e9b3fcbb072c90"


def test_repeats_and_windows_are_those_of_the_caches(tmp_path) -> None:
    records = CachedRecords(*write_caches(tmp_path, repeats={"k3": 4, "k8": 2}, per_shard=4), "train")
    epoch = records.epoch(windows(1))
    counts = Counter(records.key(record) for record in epoch.records(range(14), seed=1))
    assert counts == {f"k{n}": {3: 4, 8: 2}.get(n, 1) for n in range(10)}
    lengths = {int(window.shards[0]): window.end - window.start for window in epoch_of(epoch, 0, 1)}
    assert lengths == {0: 7, 1: 4, 2: 3}
