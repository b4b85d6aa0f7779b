"""Loss weightings: each speaks of the error in the clean latents, and one function translates it to the prediction type."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from t2i.core.params import Params
from t2i.model.prediction import PredictionType


class Uniform(Params):
    """Weight 1 on whatever the UNet predicts."""

    name: Literal["uniform"]


class MinSnr(Params):
    """Min-SNR-gamma, `min(snr, gamma)` on the clean latents (Hang et al. 2023, arXiv 2303.09556, eq. 4)."""

    name: Literal["min_snr"]
    gamma: float = Field(gt=0)

    def __call__(self, snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Returns the weight on the squared error of the clean latents."""
        return snr.clamp(max=self.gamma)


class SoftMinSnr(Params):
    """Soft Min-SNR-gamma, `gamma snr / (snr + gamma)` on the clean latents (Crowson et al. 2024, arXiv 2401.11605)."""

    name: Literal["soft_min_snr"]
    gamma: float = Field(gt=0)

    def __call__(self, snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Returns the weight on the squared error of the clean latents."""
        return self.gamma * snr / (snr + self.gamma)


class Debiased(Params):
    """Debiased estimation, `sqrt(snr)` on the clean latents (Yu et al. 2023, arXiv 2310.08442)."""

    name: Literal["debiased"]

    def __call__(self, snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Returns the weight on the squared error of the clean latents; on that of epsilon it is 1 / sqrt(min(snr, 1000))."""
        return snr / snr.clamp(min=_TINY, max=1000).sqrt()


_TINY = torch.finfo(torch.float32).tiny

Weighting = Annotated[Uniform | MinSnr | SoftMinSnr | Debiased, Field(discriminator="name")]


def loss_weights(
    snr: Float[Tensor, " b"], prediction_type: PredictionType, weighting: Weighting, ztsnr_floor: float
) -> Float[Tensor, " b"]:
    """Returns the weight of each sample's squared error.

    An error e in epsilon is an error of `e / sqrt(snr)` in the clean latents, one in v an error of `e / sqrt(snr + 1)`;
    so a weight on the latents is divided by snr, or by snr + 1. At an SNR of zero, where every weight on the latents would
    leave v untrained, it is ztsnr_floor times the uniform one.
    """
    if isinstance(weighting, Uniform):
        return torch.ones_like(snr)
    weights = weighting(snr) / (snr if prediction_type == "epsilon" else snr + 1)
    return torch.where(snr > 0, weights, ztsnr_floor)
