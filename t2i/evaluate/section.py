"""Section `evaluate` of params.yaml."""

from pydantic import Field

from t2i.core.params import Section
from t2i.model.precision import Precision


class Evaluate(Section):
    """Section `evaluate`."""

    prompts: int = Field(ge=2)
    """Most held-out records whose captions are sampled and measured."""
    num_inference_steps: int = Field(ge=1)
    """Steps of the checkpoint's own scheduler."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598); 1 is none."""
    precision: Precision
    """What sampling and the denoising errors are computed in."""
    retention_prompts: list[str]
    """Prompts of what the base can draw and the dataset has not: what a fine-tune may forget."""
    train_images: int = Field(ge=2)
    """Training images, at most, that copies are looked for among."""
    timesteps_per_record: int = Field(ge=1)
    """Timesteps at which the denoising error of each record is taken."""
    resamples: int = Field(ge=100)
    """Bootstrap resamples for the 95 % intervals."""
    seed: int
    """Decides the noise that samples start from, and which records are taken."""
