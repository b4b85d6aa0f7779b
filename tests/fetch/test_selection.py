import random

import pytest

from t2i.fetch.selection import Kept, Selection


def fill(selection: Selection, names: list[str]) -> int:
    """Offers records as `gather` does; returns how many were taken on the way."""
    taken = 0
    for name in names:
        rank = selection.rank(name)
        if name not in selection.kept and selection.takes(rank):
            selection.add(Kept(name, rank, ("x",), "png", 0, 0))
            taken += 1
    return taken


NAMES = [f"r{n:04d}" for n in range(2000)]


@pytest.mark.parametrize("seed", [0, 1])
def test_those_of_the_smallest_ranks_are_kept_in_whatever_order_they_come(seed) -> None:
    expected = sorted(sorted(NAMES, key=Selection(20, seed).rank)[:20])
    for shuffle in range(5):
        selection = Selection(20, seed)
        fill(selection, random.Random(shuffle).sample(NAMES, len(NAMES)))
        assert [record.key for record in selection.in_order()] == expected


def test_another_seed_keeps_others() -> None:
    kept = [Selection(20, seed) for seed in (0, 1)]
    for selection in kept:
        fill(selection, NAMES)
    assert kept[0].kept.keys() != kept[1].kept.keys()


def test_without_a_limit_all_are_kept() -> None:
    selection = Selection(None, 0)
    assert fill(selection, NAMES) == len(NAMES)
    assert [record.key for record in selection.in_order()] == NAMES


def test_few_are_taken_that_are_not_kept() -> None:
    assert fill(Selection(20, 0), NAMES) < 2 * 20 * 5.6  # 20 (1 + ln 100) = 112 are expected


def test_records_that_come_twice_are_kept_once() -> None:
    selection = Selection(20, 0)
    fill(selection, NAMES + NAMES)
    assert len(selection.kept) == len(selection.in_order()) == 20


def test_more_records_than_the_limit_only_ever_replace() -> None:
    few, many = Selection(20, 0), Selection(20, 0)
    fill(few, NAMES[:500])
    fill(many, NAMES)
    assert {name for name in many.kept if name in NAMES[:500]} <= few.kept.keys()
