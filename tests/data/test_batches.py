from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2i.data.batches import Batches, micro_batches
from t2i.data.cached import CachedRecords
from t2i.data.order import Global
from tests.tiny import write_caches


@pytest.fixture
def batches(tmp_path) -> Batches:
    return make_batches(tmp_path)


def make_batches(
    folder: Path, *, use_flips: bool = True, noise_offset: float = 0.0, input_perturbation: float = 0.0
) -> Batches:
    return Batches(
        CachedRecords(*write_caches(folder), "train"),
        order=Global(name="global"),
        batch_size=4,
        use_flips=use_flips,
        view_conditioning=lambda geometry, latents: {},
        prompt_dropout=0.25,
        timesteps_at=lambda uniform: (uniform * 1000).astype(int),
        noise_offset=noise_offset,
        input_perturbation=input_perturbation,
        seed=3,
    )


def test_repeats_decide_which_records_a_batch_has(tmp_path, batches) -> None:
    (tmp_path / "repeated").mkdir()
    records = CachedRecords(*write_caches(tmp_path / "repeated", repeats={"k3": 5}), "train")
    repeated = replace(batches, records=records, batch_size=14)
    seen = repeated.of_step(7, range(14)).moments[:, 1, 0, 0].int().tolist()  # the moments hold the number of the record
    assert Counter(seen) == dict.fromkeys(range(10), 1) | {3: 5}
    assert seen == repeated.epoch.records(range(7 * 14, 8 * 14), 3)


def test_a_step_may_cross_an_epoch(batches) -> None:
    batch = batches.of_step(2, range(4))  # positions 8 to 11 of 10 records
    assert len(batch.moments) == 4


def test_draws_do_not_depend_on_micro_batches(batches) -> None:
    whole = batches.of_step(5, range(4))
    parts = [batches.of_step(5, range(place, place + 1)) for place in range(4)]
    torch.testing.assert_close(whole.moments, torch.cat([part.moments for part in parts]), rtol=0, atol=0)
    for name in ("noise", "input_noise", "epsilon", "timesteps"):
        assert torch.equal(getattr(whole.draws, name), torch.cat([getattr(part.draws, name) for part in parts]))
    assert torch.equal(whole.conditioning["hidden"], torch.cat([part.conditioning["hidden"] for part in parts]))


def test_draws_differ_between_places_steps_and_seeds(batches) -> None:
    noises = [batches.of_step(step, range(place, place + 1)).draws.noise for step in range(3) for place in range(4)]
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == 12


def test_noise_is_standard_normal_and_timesteps_are_uniform(batches) -> None:
    batches = [batches.of_step(step, range(4)) for step in range(400)]
    noise = torch.stack([batch.draws.noise for batch in batches])
    timesteps = torch.stack([batch.draws.timesteps for batch in batches]).flatten()
    assert noise.mean().abs() < 0.02
    assert (noise.std() - 1).abs() < 0.02
    assert 0 <= timesteps.min() < 20
    assert 980 < timesteps.max() < 1000
    assert torch.histc(timesteps.float(), 10, 0, 1000).min() > 100


def test_dropped_prompts_get_the_empty_conditioning(batches) -> None:
    dropped = 0
    for step in range(300):
        batch = batches.of_step(step, range(4))
        records = batch.moments[:, 1, 0, 0]
        empty = (batch.conditioning["hidden"] == 0).all(dim=(1, 2))
        dropped += int(empty.sum())
        assert torch.equal(batch.conditioning["hidden"][~empty][:, 0, 0], records[~empty] + 1)
    assert 0.2 < dropped / 1200 < 0.3


@pytest.mark.parametrize(("processes", "size"), [(1, None), (1, 3), (2, 2), (4, 1), (2, 100)])
def test_micro_batches_cover_the_batch_once(processes, size) -> None:
    shares = [micro_batches(8, rank, processes, size) for rank in range(processes)]
    assert sorted(place for rank in shares for places in rank for place in places) == list(range(8))


def test_a_batch_size_must_be_a_multiple_of_processes() -> None:
    with pytest.raises(ValueError, match=r"`train.batch_size` 8 .* `runtime.processes` 3"):
        micro_batches(8, 0, 3, None)


def test_caches_from_different_datasets_are_rejected(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"latents has 10 train records, but .*embeds has 9: .* different datasets"):
        CachedRecords(*write_caches(tmp_path, embedded=9), "train")


def test_noise_offset_is_one_number_per_channel(tmp_path, batches) -> None:
    (tmp_path / "offset").mkdir()
    plain, offset = batches.of_step(1, range(4)), make_batches(tmp_path / "offset", noise_offset=0.5).of_step(1, range(4))
    added = offset.draws.noise - plain.draws.noise
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added))
    assert added.std() > 0.1
    assert torch.equal(offset.draws.noise, offset.draws.input_noise)
    assert torch.equal(offset.draws.timesteps, plain.draws.timesteps)


def test_input_perturbation_leaves_the_target_alone(tmp_path, batches) -> None:
    (tmp_path / "perturbed").mkdir()
    perturbed = make_batches(tmp_path / "perturbed", input_perturbation=0.1)
    assert torch.equal(perturbed.of_step(0, range(4)).draws.noise, batches.of_step(0, range(4)).draws.noise)
    added = torch.cat([(d := perturbed.of_step(step, range(4)).draws).input_noise - d.noise for step in range(100)])
    assert added.std() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(batches.of_step(0, range(4)).draws.noise, batches.of_step(0, range(4)).draws.input_noise)


def test_use_flips_decides_whether_flipped_views_are_drawn(tmp_path, batches) -> None:
    (tmp_path / "unflipped").mkdir()
    unflipped = make_batches(tmp_path / "unflipped", use_flips=False)

    def flipped(which: Batches) -> float:
        return torch.cat([which.of_step(step, range(4)).moments[:, 0, 0, 0] == 0.5 for step in range(50)]).float().mean().item()

    assert flipped(batches) == pytest.approx(0.5, abs=0.15)
    assert flipped(unflipped) == 0
