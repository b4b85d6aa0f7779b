"""Loss weightings: the weight of the squared error of each sample, as a function of its signal-to-noise ratio.

All weightings except `uniform` are defined on the error of the clean latents. An error e in epsilon is an error of
`e / sqrt(snr)` in the clean latents, and an error e in v is `e / sqrt(snr + 1)`: `on_prediction` converts the weights.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from t2i.core.params import Section
from t2i.model.prediction import PredictionType

Snr = Float[Tensor, " b"]
"""Signal-to-noise ratio of each sample of a batch."""


def on_prediction(weights: Float[Tensor, " b"], snr: Snr, prediction_type: PredictionType) -> Float[Tensor, " b"]:
    """Converts weights on the squared error of the clean latents to weights on the squared error of the prediction."""
    return weights / (snr if prediction_type == "epsilon" else snr + 1)


class Uniform(Section):
    """Weight 1 on the squared error of the prediction."""

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

    On the error of epsilon this is `1 / sqrt(min(snr, 1000))`.
    """

    name: Literal["debiased"]

    def __call__(self, snr: Snr, prediction_type: PredictionType) -> Float[Tensor, " b"]:
        """Returns the weights on the squared error of the prediction."""
        return on_prediction(snr / snr.clamp(min=_TINY, max=1000).sqrt(), snr, prediction_type)


_TINY = torch.finfo(torch.float32).tiny

Weighting = Annotated[Uniform | MinSnr | SoftMinSnr | Debiased, Field(discriminator="name")]


def loss_weights(snr: Snr, prediction_type: PredictionType, weighting: Weighting, ztsnr_floor: float) -> Float[Tensor, " b"]:
    """Returns the weight of the squared error of each sample.

    At an SNR of 0, a weight of 0 becomes `ztsnr_floor`: a weight on the clean latents would leave v untrained there.
    """
    weights = weighting(snr, prediction_type)
    return torch.where((snr > 0) | (weights > 0), weights, ztsnr_floor)
