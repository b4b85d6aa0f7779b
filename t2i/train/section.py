"""Section `train` of params.yaml."""

from typing import Literal

from pydantic import Field, model_validator

from t2i.core.params import Regex, Section
from t2i.model.precision import Precision
from t2i.train.ema import EmaSection
from t2i.train.objective import ObjectiveSection
from t2i.train.optim import AdamW, Schedule


class Train(Section):
    """Section `train`: everything that decides what comes out of training."""

    init: Literal["base", "random"]
    """`base`: fine-tune the base's weights. `random`: train the same configuration from scratch."""
    trainable: Regex
    """Regular expression: parameters of the UNet in whose name it is found are trained, the others stay as they are."""
    steps: int | None = Field(ge=1)
    """Optimizer steps; or null, with `epochs`."""
    epochs: int | None = Field(ge=1)
    """Visits of each record; or null, with `steps`."""
    batch_size: int = Field(ge=1)
    """Images of an optimizer step, over all processes and micro-batches."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(ge=0)
    """Steps of linear warm-up from 0."""
    scale_learning_rate: bool
    """Whether the peak is `learning_rate` times `batch_size`: the images of a step, over all processes."""
    schedule: Schedule
    """After warm-up: constant, linear, cosine, cosine_with_restarts (`cycles`), polynomial (`power`, `end_factor`)."""
    optimizer: AdamW
    """The optimizer by `name`, with its parameters."""
    max_grad_norm: float = Field(gt=0)
    """Norm that the gradients are clipped to."""
    objective: ObjectiveSection
    """What is predicted, from which noise, and how the errors are weighted."""
    use_flips: bool
    """Whether flipped views are drawn too, where `encode.images.flip` stored them: with and without need no other cache."""
    prompt_dropout: float = Field(ge=0, le=1)
    """Share of the images trained on with the empty prompt, which classifier-free guidance needs."""
    precision: Precision
    """What the UNet computes in; weights, noising and loss stay fp32."""
    ema: EmaSection
    """The running mean of the weights, which is what is exported."""
    seed: int
    """Decides order, noise, timesteps, and random weights."""

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set one of `steps` and `epochs`, and null for the other")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at the end of warm-up."""
        return self.learning_rate * (self.batch_size if self.scale_learning_rate else 1)

    def total_steps(self, records: int) -> int:
        """Returns the number of optimizer steps; that of `epochs` is rounded up."""
        return self.steps or -(-(self.epochs or 0) * records // self.batch_size)
