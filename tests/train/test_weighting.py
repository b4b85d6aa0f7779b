import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from t2i.model.diffusion import snr
from t2i.train.weighting import Debiased, MinSnr, SoftMinSnr, Uniform, loss_weights

SNR = torch.logspace(-4, 4, 200)
MIN, SOFT, DEBIASED = MinSnr(name="min_snr", gamma=5.0), SoftMinSnr(name="soft_min_snr", gamma=5.0), Debiased(name="debiased")


@pytest.mark.parametrize("weighting", [MIN, SOFT, DEBIASED], ids=lambda weighting: weighting.name)
def test_prediction_types_share_one_weight_on_the_latents(weighting) -> None:
    epsilon, v = (loss_weights(SNR, kind, weighting, 0.01) for kind in ("epsilon", "v_prediction"))
    torch.testing.assert_close(epsilon * SNR, v * (SNR + 1))


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_clips_at_gamma(gamma) -> None:
    weights = loss_weights(SNR, "epsilon", MinSnr(name="min_snr", gamma=gamma), 0.01)
    torch.testing.assert_close(weights[gamma >= SNR], torch.ones_like(SNR)[gamma >= SNR])
    torch.testing.assert_close(weights[gamma < SNR], gamma / SNR[gamma < SNR])


def test_min_snr_matches_the_diffusers_script() -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.arange(1000)
    theirs = compute_snr(scheduler, timesteps)
    ours = snr(scheduler.alphas_cumprod)
    torch.testing.assert_close(ours, theirs)
    clipped = torch.stack([theirs, 5.0 * torch.ones_like(theirs)], dim=1).min(dim=1)[0]
    torch.testing.assert_close(loss_weights(ours, "epsilon", MIN, 0.01), clipped / theirs)
    torch.testing.assert_close(loss_weights(ours, "v_prediction", MIN, 0.01), clipped / (theirs + 1))


def test_soft_min_snr_approaches_min_snr_far_from_gamma() -> None:
    far = torch.tensor([1e-4, 1e4])
    torch.testing.assert_close(SOFT(far, "epsilon"), MIN(far, "epsilon"), rtol=1e-3, atol=0)
    assert SOFT(torch.tensor([5.0]), "epsilon") == 0.5


def test_debiased_on_epsilon_is_one_over_the_root_of_the_snr() -> None:
    wanted = 1 / SNR.clamp(max=1000).sqrt()
    torch.testing.assert_close(loss_weights(SNR, "epsilon", DEBIASED, 0.01), wanted)
    low = SNR[SNR < 1000]
    torch.testing.assert_close(loss_weights(low, "v_prediction", DEBIASED, 0.01), low.sqrt() / (low + 1))


def test_uniform_is_one_for_any_prediction_type() -> None:
    for kind in ("epsilon", "v_prediction"):
        assert (loss_weights(SNR, kind, Uniform(name="uniform"), 0.01) == 1).all()


@pytest.mark.parametrize("weighting", [MIN, SOFT, DEBIASED], ids=lambda weighting: weighting.name)
def test_at_zero_snr_the_weight_of_v_is_the_floor(weighting) -> None:
    weights = loss_weights(torch.tensor([0.0, 1.0]), "v_prediction", weighting, 0.01)
    assert weights[0] == pytest.approx(0.01)
    assert weights[1] > 0.3
