import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from t2i.model.latents import psnr, sample_latents


def test_a_sample_is_that_of_diffusers_times_the_scale() -> None:
    moments = torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(0))
    epsilon = torch.randn(3, 4, 5, 4, generator=torch.Generator().manual_seed(1))
    reference = DiagonalGaussianDistribution(moments).sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(sample_latents(moments, epsilon, 0.18215), reference * 0.18215)


def test_no_epsilon_gives_the_mean_minus_the_shift() -> None:
    moments = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(sample_latents(moments, None, 2.0, 0.5), (moments[:, :4] - 0.5) * 2)


def test_psnr_of_a_constant_error() -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    assert psnr(pixels, pixels + 0.2).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
