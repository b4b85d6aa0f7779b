"""Compares the objective with that of the script train_text_to_image.py, computed with the functions of diffusers."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_dream_and_update_latents, compute_snr

from t2i.data.cached import CachedRecords
from t2i.data.order import Global
from t2i.model.families.stable_diffusion import Family
from t2i.train.objective import Objective, ObjectiveSection
from tests import tiny
from tests.projects import PLAIN

MIN_SNR = {"weighting": {"name": "min_snr", "gamma": 5.0}}


@pytest.fixture(params=["epsilon", "v_prediction"])
def caches(request, project, tmp_path) -> tuple[Any, str]:
    base = tiny.make_base(tmp_path / "other", prediction_type=request.param)
    project.params["base"] |= {"local": str(base), "clip": str(base / "clip")}
    project.write()
    project.fetch_and_encode()
    return project.folder / "data", request.param


@pytest.mark.parametrize(
    "options",
    [
        {},
        MIN_SNR,
        {"noise_offset": 0.2},
        {"input_perturbation": 0.1} | MIN_SNR,
        {"dream_detail_preservation": 1.0},
        {"dream_detail_preservation": 10.0, "input_perturbation": 0.1} | MIN_SNR,
        {"prediction_type": "v_prediction"} | MIN_SNR,
        {"prediction_type": "v_prediction", "zero_terminal_snr": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_the_loss_matches_the_diffusers_script(caches, options) -> None:
    data, predicted = caches
    params = ObjectiveSection(**(PLAIN | options))
    if "dream_detail_preservation" in options and predicted == "v_prediction":
        with pytest.raises(ValueError, match=r"`train.objective.dream_detail_preservation` .* null"):
            Objective(params, Family(data / "base"), "cpu")
        return
    family = Family(data / "base", params.scheduler_changes())
    unet = family.load_unet(random=False)
    objective = Objective(params, family, "cpu")
    records = CachedRecords(data / "latents", data / "embeds", "train")
    batch = objective.batches(records, Global(name="global"), 8, True, 0.1, seed=0).of_step(0, range(8))
    ours, ours_unweighted = objective.loss(unet, batch)

    scheduler = DDPMScheduler.from_pretrained(data / "base", subfolder="scheduler", **params.scheduler_changes())
    mean, logvar = batch.moments.chunk(2, dim=1)
    latents = (mean + torch.exp(0.5 * logvar) * batch.draws.epsilon) * family.scaling_factor
    noise, timesteps, text = batch.draws.noise, batch.draws.timesteps, batch.conditioning["encoder_hidden_states"]
    noisy = scheduler.add_noise(latents, batch.draws.input_noise, timesteps)
    kind = options.get("prediction_type", predicted)
    target = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    reference = UNet2DConditionModel.from_pretrained(data / "base", subfolder="unet")
    if (power := options.get("dream_detail_preservation")) is not None:
        noisy, target = compute_dream_and_update_latents(reference, scheduler, timesteps, noise, noisy, target, text, power)
    errors = (reference(noisy, timesteps, text).sample - target).square().mean(dim=(1, 2, 3))
    weights = torch.ones(8)
    if "weighting" in options:
        ratio = compute_snr(scheduler, timesteps)
        clipped = torch.stack([ratio, 5.0 * torch.ones_like(ratio)], dim=1).min(dim=1)[0]
        weights = clipped / (ratio if kind == "epsilon" else ratio + 1)
    torch.testing.assert_close(ours, (weights * errors).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours_unweighted, errors.mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prediction_type": "epsilon", "zero_terminal_snr": True}, "`prediction_type` .*v_prediction, or `zero_terminal_snr"),
        ({"prediction_type": "v_prediction", "dream_detail_preservation": 1.0}, "`dream_detail_preservation` .* null"),
    ],
)
def test_impossible_objectives_are_refused_on_reading(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        ObjectiveSection(**(PLAIN | options))


def test_an_epsilon_base_refuses_zero_terminal_snr(tiny_base) -> None:
    params = ObjectiveSection(**(PLAIN | {"zero_terminal_snr": True}))
    with pytest.raises(ValueError, match=r"set `train.objective.prediction_type` to v_prediction"):
        Family(tiny_base, params.scheduler_changes())
