"""The forward process of a diffusion model: pure functions in fp32, where `a` is alphas_cumprod at the timesteps.

noisy_latents = sqrt(a) latents + sqrt(1 - a) noise        (Ho et al. 2020, arXiv 2006.11239, eq. 4)
v             = sqrt(a) noise - sqrt(1 - a) latents        (Salimans & Ho 2022, arXiv 2202.00512, appendix D)
"""

from typing import get_args

from jaxtyping import Float
from torch import Tensor

from t2i.model.prediction import PredictionType


def add_noise(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], a: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Returns `sqrt(a) latents + sqrt(1 - a) noise`."""
    a = a.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def prediction_target(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], a: Float[Tensor, " b"], prediction_type: PredictionType
) -> Float[Tensor, "b c h w"]:
    """Returns the target of the prediction: the noise, or `v = sqrt(a) noise - sqrt(1 - a) latents`.

    Raises:
        ValueError: if the prediction type is unknown.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        a = a.view(-1, 1, 1, 1)
        return a.sqrt() * noise - (1 - a).sqrt() * latents
    raise ValueError(f"prediction_type is {prediction_type!r}, wanted one of: {', '.join(get_args(PredictionType))}")


def rectified(
    noisy_latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    predicted: Float[Tensor, "b c h w"],
    a: Float[Tensor, " b"],
    detail_preservation: float,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Returns the noisy latents and the target of DREAM (Zhou et al. 2023, arXiv 2312.00210), closer to those of sampling.

    Both are shifted by the error of a first prediction of the noise, times `sqrt(1 - a) ** detail_preservation`.
    """
    sigma = (1 - a).sqrt().view(-1, 1, 1, 1)
    missed = sigma**detail_preservation * (noise - predicted)
    return noisy_latents + sigma * missed, noise + missed


def snr(a: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Returns the signal-to-noise ratio `a / (1 - a)`."""
    return a / (1 - a)
