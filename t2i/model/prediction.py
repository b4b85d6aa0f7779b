"""What a UNet predicts of a noisy latent: a word for each, which families, weightings and the forward process share."""

from typing import Literal

PredictionType = Literal["epsilon", "v_prediction"]
