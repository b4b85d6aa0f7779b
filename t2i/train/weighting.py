"""Loss weightings: the weight of each sample's squared error, by its signal-to-noise ratio.

All but the uniform one are stated as a weight on the error of the clean latents. An error e in epsilon is an error of
`e / sqrt(snr)` there, and one in v an error of `e / sqrt(snr + 1)`: `on_prediction` translates.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from t2i.core.params import Section
from t2i.model.prediction import PredictionType

Snr = Float[Tensor, " b"]
"""Signal-to-noise ratios of the samples of a batch."""


def on_prediction(weights: Float[Tensor, " b"], snr: Snr, prediction_type: PredictionType) -> Float[Tensor, " b"]:
    """Returns weights on the squared error of the clean latents as weights on that of the prediction."""
    return weights / (snr if prediction_type == "epsilon" else snr + 1)


class Uniform(Section):
    """Weight 1 on whatever the UNet predicts."""

    name: Literal["uniform"]

    def __call__(self, snr: Snr, prediction_type: PredictionType) -> Float[Tensor, " b"]:
        """Returns the weights on the squared error of the prediction."""
        return torch.ones_like(snr)


class MinSnr(Section):
    """Min-SNR-gamma, `min(snr, gamma)` on the clean latents (Hang et al. 2023, arXiv 2303.09556, eq. 4)."""

    name: Literal["min_snr"]
    gamma: float = Field(gt=0)

    def __call__(self, snr: Snr, prediction_type: PredictionType) -> Float[Tensor, " b"]:
        """Returns the weights on the squared error of the prediction."""
        return on_prediction(snr.clamp(max=self.gamma), snr, prediction_type)


class SoftMinSnr(Section):
    """Soft Min-SNR-gamma, `gamma snr / (snr + gamma)` on the clean latents (Crowson et al. 2024, arXiv 2401.11605)."""

    name: Literal["soft_min_snr"]
    gamma: float = Field(gt=0)

    def __call__(self, snr: Snr, prediction_type: PredictionType) -> Float[Tensor, " b"]:
        """Returns the weights on the squared error of the prediction."""
        return on_prediction(self.gamma * snr / (snr + self.gamma), snr, prediction_type)


class Debiased(Section):
    """Debiased estimation, `sqrt(snr)` on the clean latents (Yu et al. 2023, arXiv 2310.08442).

    On epsilon that is `1 / sqrt(min(snr, 1000))`.
    """

    name: Literal["debiased"]

    def __call__(self, snr: Snr, prediction_type: PredictionType) -> Float[Tensor, " b"]:
        """Returns the weights on the squared error of the prediction."""
        return on_prediction(snr / snr.clamp(min=_TINY, max=1000).sqrt(), snr, prediction_type)


_TINY = torch.finfo(torch.float32).tiny

Weighting = Annotated[Uniform | MinSnr | SoftMinSnr | Debiased, Field(discriminator="name")]


def loss_weights(snr: Snr, prediction_type: PredictionType, weighting: Weighting, ztsnr_floor: float) -> Float[Tensor, " b"]:
    """Returns the weight of each sample's squared error.

    At an SNR of zero, where a weight on the clean latents would leave v untrained, it is ztsnr_floor times the uniform one.
    """
    weights = weighting(snr, prediction_type)
    return torch.where(weights > 0, weights, ztsnr_floor)
