"""Latents: samples them from the moments of the VAE, and measures how well the VAE rebuilds an image."""

import torch
from jaxtyping import Float
from torch import Tensor


def sample_latents(
    moments: Float[Tensor, "b m h w"],
    epsilon: Float[Tensor, "b c h w"] | None,
    scaling_factor: float,
    shift_factor: float = 0.0,
) -> Float[Tensor, "b c h w"]:
    """Returns scaled latents, `(mean + exp(logvar / 2) * epsilon - shift_factor) * scaling_factor`, in fp32.

    Args:
        moments: mean and log-variance, stacked over channels, unscaled (`latent_dist.parameters` in diffusers).
        epsilon: standard normal noise; None returns the mean.
        scaling_factor: `vae.config.scaling_factor`.
        shift_factor: `vae.config.shift_factor`, or 0 if that is None.
    """
    mean, logvar = moments.float().chunk(2, dim=1)
    if epsilon is not None:
        mean = mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * epsilon.float()
    return (mean - shift_factor) * scaling_factor


def psnr(pixels: Float[Tensor, "b 3 h w"], rebuilt: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Returns the peak signal-to-noise ratio of each image in decibels, for pixels in [-1, 1]."""
    mse = ((pixels - rebuilt.clamp(-1, 1)) / 2).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(mse.clamp_min(1e-10))
