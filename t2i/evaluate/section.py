"""Section `evaluate` of params.yaml."""

from pydantic import Field

from t2i.core.params import Section
from t2i.data.records import Prompt
from t2i.model.precision import Precision


class Evaluate(Section):
    """Section `evaluate`."""

    prompts: int = Field(ge=2)
    """Maximum number of held-out records whose captions are sampled and measured."""
    num_inference_steps: int = Field(ge=1)
    """Sampling steps of the checkpoint's scheduler."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598); 1 disables it."""
    precision: Precision
    """Precision of sampling and of the denoising errors."""
    retention_prompts: list[Prompt]
    """Prompts that the base can draw and the dataset does not contain, to measure what the model forgets."""
    train_images: int = Field(ge=2)
    """Maximum number of training images that samples are compared with to find copies."""
    timesteps_per_record: int = Field(ge=1)
    """Number of timesteps at which the denoising error of each record is computed."""
    resamples: int = Field(ge=100)
    """Number of bootstrap resamples for the 95 % intervals."""
    seed: int
    """Decides the noise that samples start from, and which records are used."""
