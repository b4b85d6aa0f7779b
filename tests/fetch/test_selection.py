import random

import pytest

from t2i.fetch.selection import Kept, Selection


def fill(selection: Selection, names: list[str]) -> int:
    """Offers records as `gather` does; returns how many were added."""
    added = 0
    for name in names:
        rank = selection.rank(name)
        if name not in selection.kept and selection.takes(rank):
            selection.add(Kept(name, name, rank, ("x",), "png", 0, 0))
            added += 1
    return added


NAMES = [f"r{n:04d}" for n in range(2000)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_smallest_ranks_are_kept_in_any_order(seed) -> None:
    expected = sorted(sorted(NAMES, key=Selection(20, seed).rank)[:20])
    for shuffle in range(5):
        selection = Selection(20, seed)
        fill(selection, random.Random(shuffle).sample(NAMES, len(NAMES)))
        assert [record.key for record in selection.in_order()] == expected


def test_another_seed_keeps_other_records() -> None:
    kept = [Selection(20, seed) for seed in (0, 1)]
    for selection in kept:
        fill(selection, NAMES)
    assert kept[0].kept.keys() != kept[1].kept.keys()


def test_without_a_limit_all_records_are_kept() -> None:
    selection = Selection(None, 0)
    assert fill(selection, NAMES) == len(NAMES)
    assert [record.key for record in selection.in_order()] == NAMES


def test_few_records_are_added_and_later_replaced() -> None:
    assert fill(Selection(20, 0), NAMES) < 2 * 20 * 5.6  # 20 (1 + ln 100) = 112 are expected


def test_repeated_records_are_kept_once() -> None:
    selection = Selection(20, 0)
    fill(selection, NAMES + NAMES)
    assert len(selection.kept) == len(selection.in_order()) == 20


def test_more_records_only_replace_kept_records() -> None:
    few, many = Selection(20, 0), Selection(20, 0)
    fill(few, NAMES[:500])
    fill(many, NAMES)
    assert {name for name in many.kept if name in NAMES[:500]} <= few.kept.keys()
