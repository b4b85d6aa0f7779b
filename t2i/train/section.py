"""Section `train` of params.yaml."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from t2i.core.params import Regex, Section, check
from t2i.data.order import Order
from t2i.model.adapter import adapter_named
from t2i.model.precision import Precision
from t2i.train.ema import EmaSection
from t2i.train.objective import ObjectiveSection
from t2i.train.optim import AdamW, Schedule


class Train(Section):
    """Section `train`: everything that determines the result of training."""

    init: Literal["base", "random"]
    """`base`: fine-tune the weights of the base. `random`: train the same configuration from scratch."""
    trainable: Regex
    """Regular expression: UNet parameters whose names match (anywhere in the name) are trained, the rest are frozen."""
    adapter: Any
    """What is trained: `{name: none}`, the UNet, or `lora`, factors of low rank beside its frozen weights; a package in
    t2i/model/adapters."""
    steps: int | None = Field(ge=1)
    """Number of optimizer steps; null if `epochs` is set."""
    epochs: int | None = Field(ge=1)
    """Number of passes over the training records, each as often as it is repeated; null if `steps` is set."""
    batch_size: int = Field(ge=1)
    """Images per optimizer step, over all processes and micro-batches."""
    order: Order
    """How an epoch is shuffled: `global`, all records, or `windows`, the records of `shards` shards at a time."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(ge=0)
    """Optimizer steps of linear warm-up from 0."""
    scale_learning_rate: bool
    """Whether the peak learning rate is `learning_rate` times `batch_size`."""
    schedule: Schedule
    """Schedule after warm-up: constant, linear, cosine, cosine_with_restarts (`cycles`), polynomial (`power`, `end_factor`)."""
    optimizer: AdamW
    """The optimizer: its `name` and its parameters."""
    max_grad_norm: float = Field(gt=0)
    """Largest gradient norm; larger gradients are scaled down to it."""
    objective: ObjectiveSection
    """What the UNet predicts, which noise is added, and how errors are weighted."""
    use_flips: bool
    """Whether to use flipped views too, if `encode.images.flip` stored them; changing it does not re-encode."""
    prompt_dropout: float = Field(ge=0, le=1)
    """Fraction of the images trained on with the empty prompt, which classifier-free guidance needs."""
    precision: Precision
    """Precision of the computations of the UNet; weights, noising and loss stay in fp32."""
    export_dtype: Precision
    """Precision of the weights of the exported pipeline. In fp16 or bf16 it takes half the space, and has to be loaded with
    that `torch_dtype`."""
    ema: EmaSection
    """The exponential moving average of the weights, which is what is exported."""
    seed: int
    """Seed of the order of records, the noise, the timesteps and random weights."""

    @field_validator("adapter", mode="before")
    @classmethod
    def _chosen(cls, adapter: object) -> Any:
        if isinstance(adapter, Section):
            return adapter
        if not isinstance(adapter, dict) or "name" not in adapter:
            raise ValueError("wanted a `name` and the parameters of that adapter")
        return check(adapter_named(adapter["name"]).Adapter, adapter, "train.adapter")

    @model_validator(mode="after")
    def _one_thing_trained(self) -> "Train":
        if self.adapter.keeps_base and (self.trainable or self.init == "random"):
            key, value = ("trainable", '""') if self.trainable else ("init", "base")
            raise ValueError(
                f"`{key}` is {getattr(self, key)!r}, but with the adapter {self.adapter.name} the whole base stays frozen: "
                f"set `train.{key}: {value}`, or `train.adapter: {{name: none}}`"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set one of `steps` and `epochs`, and the other to null")
        self._check_learns(self.steps)
        return self

    def _check_learns(self, steps: int | None) -> None:
        if steps == 1 and self.warmup_steps:
            raise ValueError(
                f"`warmup_steps` is {self.warmup_steps} and the run has 1 step, whose learning rate is then 0: set "
                "`train.warmup_steps: 0`, or train longer"
            )

    def notes(self, steps: int) -> list[str]:
        """Returns why a run of `steps` steps learns less than one may think; empty if there is no reason."""
        found, share = [], self.ema.share_of_copy(steps)
        if self.warmup_steps >= steps:
            found.append(
                f"the learning rate never reaches `train.learning_rate`, because `train.warmup_steps` is {self.warmup_steps} "
                f"and the run has {steps} steps"
            )
        if share > 0.5:
            first = max(self.ema.every_steps, self.ema.start_step)
            found.append(
                f"the exported EMA will consist to {share:.0%} of the weights after the first {first} steps: lower "
                "`train.ema.decay`, set `train.ema.ramp`, or train longer"
            )
        return found

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate at the end of warm-up."""
        return self.learning_rate * (self.batch_size if self.scale_learning_rate else 1)

    def total_steps(self, images_per_epoch: int) -> int:
        """Returns the number of optimizer steps; `epochs` are converted to steps and rounded up.

        Args:
            images_per_epoch: the training records, each as often as it is repeated.

        Raises:
            ValueError: if the only step is one of warm-up.
        """
        steps = self.steps or -(-(self.epochs or 0) * images_per_epoch // self.batch_size)
        self._check_learns(steps)
        return steps
