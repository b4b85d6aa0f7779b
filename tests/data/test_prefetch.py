import threading
from dataclasses import fields

import pytest
import torch

from t2i.data.batches import Batch, Batches, Draws
from t2i.data.cached import CachedRecords
from t2i.data.order import Global
from t2i.data.prefetch import AHEAD, Prefetcher
from tests.tiny import write_caches


@pytest.fixture
def batches(tmp_path) -> Batches:
    return Batches(
        CachedRecords(*write_caches(tmp_path), "train"),
        order=Global(name="global"),
        batch_size=6,
        use_flips=True,
        view_conditioning=lambda geometry, latents: {"size": torch.tensor([*geometry.original_size, *latents])},
        prompt_dropout=0.25,
        timesteps_at=lambda uniform: (uniform * 1000).astype(int),
        noise_offset=0.1,
        input_perturbation=0.1,
        seed=3,
    )


PLACES = [range(3), range(3, 5), range(5, 6)]


def tensors(batch: Batch) -> list[torch.Tensor]:
    drawn = [getattr(batch.draws, field.name) for field in fields(Draws)]
    return [batch.moments, *batch.conditioning.values(), *drawn]


def test_prefetched_batches_are_those_of_the_steps(batches) -> None:
    prefetcher = Prefetcher(batches, PLACES, "cpu")
    order = [(step, number) for step in range(4) for number in range(3)]
    order += [(3, 0), (3, 1), (9, 2), (10, 0), (2, 1), (2, 1), (2, 2)]  # a repeated step, and jumps
    found = [prefetcher.batch(*place) for place in order]  # kept until the end, while the memory behind them is used again
    prefetcher.close()
    for (step, number), batch in zip(order, found, strict=True):
        wanted = batches.of_step(step, PLACES[number])
        assert all(torch.equal(one, other) for one, other in zip(tensors(batch), tensors(wanted), strict=True))


def test_the_next_batches_are_gathered_before_they_are_needed(batches) -> None:
    gathered, enough = [], threading.Event()

    class Watched(Batches):
        def gather(self, step, places, buffers):
            gathered.append((step, places))
            if len(gathered) == 1 + AHEAD:
                enough.set()
            return super().gather(step, places, buffers)

    prefetcher = Prefetcher(Watched(**{field.name: getattr(batches, field.name) for field in fields(Batches)}), PLACES, "cpu")
    prefetcher.batch(0, 0)
    assert enough.wait(10)
    prefetcher.close()
    assert gathered == [(0, places) for places in PLACES]


def test_an_error_of_the_thread_reaches_the_step(batches, tmp_path) -> None:
    shard = tmp_path / "latents/train-00000.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    prefetcher = Prefetcher(batches, PLACES, "cpu")
    with pytest.raises(ValueError, match=r"train-00000.tar: record k\d: not at byte"):
        prefetcher.batch(0, 0)
    prefetcher.close()
