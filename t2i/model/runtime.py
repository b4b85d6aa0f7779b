"""Runtime: what changes at most rounding, or is only looked at. No stage is run again for it."""

from typing import Literal

from pydantic import Field

from t2i.core.params import Section


class Validation(Section):
    """`runtime.validation`."""

    every_steps: int = Field(ge=1)
    """Optimizer steps between validations; there is one before the first step and one after the last, too."""
    records: int = Field(ge=1)
    """Held-out records, and as many training records, whose denoising error is taken."""
    timesteps_per_record: int = Field(ge=1)
    """Timesteps at which it is taken."""
    num_inference_steps: int = Field(ge=1)
    """Sampling steps of the pictures, which are drawn of `encode.captions.validation_prompts`."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance of the pictures."""
    seed: int
    """Decides the noise that pictures start from, and the records."""


class Runtime(Section):
    """Section `runtime`, which DVC does not track: a run can be given more processes or checkpoints, and go on."""

    device: Literal["auto", "cpu", "cuda"]
    """`auto`: a GPU where there is one."""
    processes: int = Field(ge=1)
    """Training processes on this machine, a GPU each, or sharing the CPU's cores."""
    micro_batch_size: int | None = Field(ge=1)
    """Images a process holds at once; null: its whole share of train.batch_size. Accumulation follows from it."""
    gradient_checkpointing: bool
    """Recomputes activations in the backward pass: less memory, 25 to 45 % slower."""
    attention: Literal["auto", "eager", "sdpa", "xformers"]
    """`eager`: plain matrix products; on a CPU in bf16 a third faster to train with, but their memory grows with the square of
    the latents' number. `sdpa`: PyTorch's fused kernels. `xformers`: the extra, on a GPU. `auto`: eager on a CPU, else sdpa."""
    tf32: bool
    """Lets fp32 matrix products on recent GPUs round their operands to TF32."""
    checkpoint_every_seconds: float = Field(gt=0)
    """Longest stretch of training that a crash can cost."""
    ema_device: Literal["cpu"] | None
    """Where the EMA's weights are kept: `cpu` spares a GPU their memory; null: beside the UNet's."""
    keep_checkpoints: int = Field(ge=1)
    """How many of the newest checkpoints stay on disk."""
    log_every_steps: int = Field(ge=1)
    """Optimizer steps a row of the loss history stands for (it holds their means)."""
    trackers: list[Literal["tensorboard", "wandb", "dvclive"]]
    """Where figures and validation pictures go besides history.csv; the extra `trackers`. WANDB_MODE=online sends."""
    tracker_project: str
    """The project's name there."""
    verify_shards: bool
    """Whether every byte of the shards that a stage reads is held to its sha256 before anything is computed; their sizes always
    are. A second for some 1 GB."""
    encode_batch_size: int = Field(ge=1)
    """Images or captions that go through the VAE, the text encoder or the sampler at once, in validation too."""
    validation: Validation
    """What is measured and drawn while training runs."""

    def torch_device(self) -> str:
        """Returns `cuda` or `cpu`."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`runtime.device` is cuda, but PyTorch sees no GPU here: set it to auto or cpu")
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"

    def attention_here(self, precision: str) -> str:
        """Returns the attention to train with: `eager`, `sdpa` or `xformers`."""
        if self.attention != "auto":
            return self.attention
        return "eager" if self.torch_device() == "cpu" and precision == "bf16" else "sdpa"


def device_in_words(device: object) -> str:
    """Returns a device as a stage announces it: `cuda`, or `cpu with 2 threads`."""
    import torch

    return f"cpu with {torch.get_num_threads()} threads" if str(device) == "cpu" else str(device)
