from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_dream_and_update_latents

from t2i.model.diffusion import add_noise, prediction_target, rectified, snr


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(8, 4, 6, 5, generator=generator) for _ in range(2))
    return latents, noise, torch.tensor([0, 1, 10, 250, 500, 750, 998, 999])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noising_and_targets_match_diffusers(drawn, prediction_type) -> None:
    latents, noise, timesteps = drawn
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    a = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(add_noise(latents, noise, a), scheduler.add_noise(latents, noise, timesteps))
    wanted = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(prediction_target(latents, noise, a, prediction_type), wanted)


def test_v_and_noisy_latents_give_latents_and_noise(drawn) -> None:
    latents, noise, _ = drawn
    a = torch.linspace(0.01, 0.99, 8)
    noisy, v = add_noise(latents, noise, a), prediction_target(latents, noise, a, "v_prediction")
    a = a.view(-1, 1, 1, 1)
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * v, latents)
    torch.testing.assert_close((1 - a).sqrt() * noisy + a.sqrt() * v, noise)


def test_snr_is_the_ratio_of_the_variances() -> None:
    torch.testing.assert_close(snr(torch.tensor([0.5, 0.8])), torch.tensor([1.0, 4.0]))


@pytest.mark.parametrize("power", [0.0, 1.0, 10.0])
def test_dream_matches_diffusers(drawn, power) -> None:
    latents, noise, timesteps = drawn
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    noisy, guess = scheduler.add_noise(latents, noise, timesteps), torch.randn_like(noise)
    theirs = compute_dream_and_update_latents(
        lambda *_: SimpleNamespace(sample=guess), scheduler, timesteps, noise, noisy, noise, torch.zeros(1), power
    )
    ours = rectified(noisy, noise, guess, scheduler.alphas_cumprod[timesteps], power)
    torch.testing.assert_close(ours, theirs)
