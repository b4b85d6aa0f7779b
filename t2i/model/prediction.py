"""Prediction type: what a UNet predicts from noisy latents; families, weightings and the forward process share it."""

from typing import Literal

PredictionType = Literal["epsilon", "v_prediction"]
