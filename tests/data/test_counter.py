import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from t2i.data.counter import key_of, normals, scrambled, uniforms, words

INT32 = some.integers(-(2**31), 2**31 - 1)


def reference(*parts: int) -> tuple[int, ...]:
    """Returns pcg4d in Python's integers, as the paper writes it for unsigned integers of 32 bits."""
    v = [part * 1664525 + 1013904223 & 0xFFFFFFFF for part in parts]

    def cross() -> None:
        for at, (one, other) in enumerate(((1, 3), (2, 0), (0, 1), (1, 2))):
            v[at] = v[at] + v[one] * v[other] & 0xFFFFFFFF

    cross()
    v[:] = (part ^ part >> 16 for part in v)
    cross()
    return tuple(v)


def unsigned(drawn: tuple[np.ndarray | torch.Tensor, ...]) -> list[tuple[int, ...]]:
    return list(zip(*(np.asarray(part).ravel().view(np.uint32).tolist() for part in drawn), strict=True))


@given(some.lists(some.tuples(INT32, INT32), min_size=1, max_size=8), INT32, INT32)
def test_numpy_and_torch_give_the_integers_of_pcg4d(pairs, z, w) -> None:
    wanted = [reference(x, y, z, w) for x, y in pairs]
    x, y = np.array(pairs, np.int32).T.copy()
    assert unsigned(scrambled(x, y, z, w)) == wanted
    assert unsigned(scrambled(torch.from_numpy(x), torch.from_numpy(y), z, w)) == wanted


def test_test_vectors() -> None:
    """For other implementations: seed 0, purpose `noise`, step 7, places 3 and 4, indices 0 and 1."""
    key = key_of(0, "noise")
    assert key == (-736840916, -931239693, 1592969017, -389127798)
    drawn = words(key, 7, np.array([[3], [4]], np.int32), np.arange(2, dtype=np.int32))
    assert np.stack(drawn).view(np.uint32).tolist() == [
        [[745338858, 3085499102], [2573019712, 3029856213]],
        [[3204807882, 1482676970], [474314043, 355186429]],
        [[2422598705, 2078064387], [3698735418, 3433967473]],
        [[608428020, 1024462658], [2011268003, 1200463443]],
    ]


def test_the_hash_is_a_bijection_of_neighbours() -> None:
    grid = np.arange(2**16, dtype=np.int32)
    found = np.stack(scrambled(grid[None] % 256, grid[None] // 256, 5, 9)).reshape(4, -1)
    assert len(np.unique(found, axis=1).T) == 2**16


def test_normals_of_torch_are_those_of_float64() -> None:
    key, shape = key_of(3, "noise"), (4, 5, 7)
    drawn = normals(key, 11, range(2, 5), shape, "cpu").double().numpy()
    for row, place in enumerate(range(2, 5)):
        x, y, z, w = (
            (part >> 8 & 0xFFFFFF) / 2.0**24
            for part in words(key, 11, np.array([place], np.int32), np.arange(35, dtype=np.int32))
        )
        wanted = []
        for length, angle in ((x, y), (z, w)):
            radius = np.sqrt(-2 * np.log(length + 2.0**-24))
            turned = np.float32(angle) * np.float32(2 * math.pi)
            wanted += [radius * np.cos(np.float64(turned)), radius * np.sin(np.float64(turned))]
        assert np.abs(drawn[row].ravel() - np.concatenate(wanted)).max() < 1e-6


@given(some.integers(1, 9), some.integers(1, 9), some.integers(1, 40), some.integers(1, 40))
def test_normals_do_not_depend_on_the_other_places(first, count, height, width) -> None:
    key, shape = key_of(1, "noise"), (3, height, width)
    whole = normals(key, 5, range(first, first + count), shape, "cpu")
    assert torch.equal(
        whole, torch.cat([normals(key, 5, range(at, at + 1), shape, "cpu") for at in range(first, first + count)])
    )


@pytest.mark.parametrize("moved", ["index", "place", "step", "seed", "purpose", "half of an image"])
def test_neighbours_are_not_correlated(moved) -> None:
    shape, n = (4, 64, 64), 64
    one = normals(key_of(0, "noise"), 1, range(n), shape, "cpu")
    other = {
        "index": lambda: one.flatten(1).roll(1, 1),
        "half of an image": lambda: one.flatten(1).roll(2 * 64 * 64, 1),
        "place": lambda: one.roll(1, 0),
        "step": lambda: normals(key_of(0, "noise"), 2, range(n), shape, "cpu"),
        "seed": lambda: normals(key_of(1, "noise"), 1, range(n), shape, "cpu"),
        "purpose": lambda: normals(key_of(0, "epsilon"), 1, range(n), shape, "cpu"),
    }[moved]()
    for power in (1, 2):  # values, and squares, which a linear correlation does not see
        a, b = (part.flatten().double() ** power for part in (one, other))
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1]
        assert correlation.abs() < 5 / math.sqrt(len(a))


def test_normals_are_standard_normal() -> None:
    drawn = normals(key_of(0, "noise"), 3, range(64), (4, 64, 64), "cpu").flatten().double()
    n = len(drawn)
    moments = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}
    for power, (mean, variance) in moments.items():
        assert abs((drawn**power).mean() - mean) < 5 * math.sqrt(variance / n)
    ranks = torch.special.ndtr(drawn.sort().values)
    assert (ranks - torch.arange(1, n + 1) / n).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov and Smirnov, 0.1 %


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    drawn = np.concatenate([uniforms(key_of(0, "choice"), step, range(16)) for step in range(4000)], axis=1)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for column in drawn:
        counts, _ = np.histogram(column, 100, (0, 1))
        expected = len(column) / 100
        assert ((counts - expected) ** 2 / expected).sum() < 160  # chi-squared with 99 degrees of freedom, 0.01 %
    correlations = np.corrcoef(drawn) - np.eye(4)
    assert np.abs(correlations).max() < 5 / math.sqrt(drawn.shape[1])
