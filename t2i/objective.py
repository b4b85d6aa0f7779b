"""The objective: what a step of training lowers."""

from jaxtyping import Float
from torch import Tensor, nn

from t2i.batches import Batch
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
