"""The objective: what a step of training lowers."""

import contextlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t2i.batches import Batch, Sampler
from t2i.diffusion import add_noise, prediction_target, snr
from t2i.family import Family
from t2i.latents import sample_latents
from t2i.weighting import Weighting, loss_weights


def training_loss(
    unet: nn.Module, family: Family, batch: Batch, a: Float[Tensor, " b"], weighting: Weighting
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns the weighted denoising loss of a batch, averaged over its images, and the same unweighted.

    `a` is alphas_cumprod at the batch's timesteps. All but the UNet is fp32.
    """
    draws = batch.draws
    latents = sample_latents(batch.moments, draws.epsilon, family.scaling_factor, family.shift_factor)
    prediction = family.predict(unet, add_noise(latents, draws.noise, a), draws.timesteps, batch.conditioning)
    target = prediction_target(latents, draws.noise, a, family.prediction_type)
    errors = (prediction.float() - target).square().mean(dim=(1, 2, 3))
    return (loss_weights(snr(a), family.prediction_type, weighting) * errors).mean(), errors.mean().detach()


def accumulate_gradients(
    accelerator: Any,
    unet: nn.Module,
    family: Family,
    sampler: Sampler,
    step: int,
    shares: list[range],
    alphas_cumprod: Tensor,
    weighting: Weighting,
) -> tuple[Tensor, Tensor]:
    """Adds up a step's gradients over this process's micro-batches, each weighted by its images; returns loss and MSE."""
    loss = mse = torch.zeros((), device=accelerator.device)
    for places in shares:
        share = len(places) / sum(map(len, shares))
        batch = sampler.batch(step, places).to(accelerator.device)
        with contextlib.nullcontext() if places is shares[-1] else accelerator.no_sync(unet):
            weighted, unweighted = training_loss(unet, family, batch, alphas_cumprod[batch.draws.timesteps], weighting)
            accelerator.backward(share * weighted)
        loss, mse = loss + share * weighted.detach(), mse + share * unweighted
    return loss, mse
