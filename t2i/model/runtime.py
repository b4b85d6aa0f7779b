"""Runtime: settings that change at most rounding, or only what is shown. A change never reruns a stage."""

from typing import Literal, get_args

from pydantic import Field

from t2i.core.launcher import Launcher, Tasks
from t2i.core.machine import cores
from t2i.core.params import Section
from t2i.core.workers import Start
from t2i.data.bucket import Bucket, StoreUrl
from t2i.data.remote import Remote, ShardCache
from t2i.data.storage import Folders, Storage

Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]


class Validation(Section):
    """Section `runtime.validation`."""

    every_steps: int = Field(ge=1)
    """Optimizer steps between validations. There is also one before the first step and one after the last step."""
    records: int = Field(ge=1)
    """Number of held-out records, and of training records, to measure the denoising error on."""
    timesteps_per_record: int = Field(ge=1)
    """Number of timesteps per record to measure it at."""
    num_inference_steps: int = Field(ge=1)
    """Sampling steps of the validation pictures, one per prompt of `encode.captions.validation_prompts`."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance scale of the validation pictures."""
    seed: int
    """Seed of the noise and of the choice of records."""


class Runtime(Section):
    """Section `runtime`, which DVC does not track: a run can resume with other values, such as more processes."""

    engine: Literal["torch", "jax"]
    """What computes the steps of training: PyTorch, or JAX, for TPUs; needs the extra `jax`."""
    device: Device
    """`cuda`: a GPU of NVIDIA, or of AMD with PyTorch for ROCm. `mps`: of Apple. `xpu`: of Intel. `auto`: the one of these
    that PyTorch finds, else the CPU."""
    processes: int = Field(ge=1)
    """Number of processes on this machine that train together, that share the shards to encode, and the prompts when images
    are drawn: one per GPU, or several that share the CPU cores."""
    launcher: Launcher
    """What starts the processes that encode and draw: `{name: local}`, the `processes` of this machine, or `ray`, the actors of
    a Ray cluster (`address`, `actors`, `gpus_per_actor`, `cpus_per_actor`); needs the extra `ray`. Training has torchrun."""
    store: StoreUrl | None
    """Where the shards of images, moments and embeddings are, as a URL of fsspec, such as `s3://bucket/folder`; null: in their
    folders in data/. Only manifests and indices stay there, so that another place reruns nothing. s3 needs the extra `s3`."""
    shard_cache: ShardCache
    """The copies on this disk of shards that are in use, if `store` is set."""
    micro_batch_size: int | None = Field(ge=1)
    """Most images per forward pass of a process; it accumulates gradients over the rest. null: no accumulation."""
    gradient_checkpointing: bool
    """Recomputes activations in the backward pass: less memory, 25 to 45 % slower."""
    attention: Literal["auto", "eager", "sdpa", "xformers"]
    """`eager`: plain matrix products; trains a third faster on a CPU in bf16, but its memory grows with the square of the
    number of latents. `sdpa`: fused kernels of PyTorch. `xformers`: needs that extra and `cuda`. `auto`: eager on a CPU
    in bf16, else sdpa."""
    tf32: bool
    """Allows fp32 matrix products on recent GPUs to round their operands to TF32; only on `cuda`."""
    checkpoint_every_seconds: float = Field(gt=0)
    """Seconds of training between checkpoints: the most that a crash can lose."""
    ema_device: Literal["cpu"] | None
    """Device of the EMA weights: `cpu` saves GPU memory; null: the device of the UNet."""
    keep_checkpoints: int = Field(ge=1)
    """Number of newest checkpoints to keep on disk."""
    log_every_steps: int = Field(ge=1)
    """Optimizer steps per row of history.csv; the row has their means."""
    trackers: list[Literal["tensorboard", "wandb", "dvclive"]]
    """Experiment trackers that also log figures and pictures; need the extra `trackers`. wandb sends if WANDB_MODE=online."""
    tracker_project: str
    """Project name in the trackers."""
    verify_shards: bool
    """Whether a stage checks the sha256 of the shards that it reads, about one second per GB. Training
    does so while it runs, and deletes what it has computed if a shard is damaged; the other stages do so first. Sizes are
    always checked."""
    encode_batch_size: int = Field(ge=1)
    """Batch size of the VAE, the text encoder and the sampler, also in validation."""
    decode_processes: int | None = Field(ge=1)
    """Number of processes that read, decode and resize images while the VAE encodes. null: one per CPU core that this process
    may use."""
    offload: bool
    """Keeps only the network in use on the device when images are drawn: less memory, slower. Has no effect on the CPU."""
    validation: Validation
    """What training measures and samples while it runs."""

    def torch_device(self) -> str:
        """Returns `cpu`, `cuda`, `mps` or `xpu`.

        Raises:
            ValueError: if `device` names one that this machine, or this build of PyTorch, does not have.
        """
        import torch

        if self.device == "cpu":
            return "cpu"
        found = torch.accelerator.current_accelerator(check_available=True)
        here = ["cpu", found.type] if found is not None and found.type in get_args(Device) else ["cpu"]
        if self.device not in ("auto", *here):
            raise ValueError(
                f"`runtime.device` is {self.device}, but PyTorch {torch.__version__} finds only {' and '.join(here)} here: "
                f"set it to {', '.join(['auto', *here[:-1]])} or {here[-1]}"
            )
        return here[-1]

    def storage(self) -> Storage:
        """Returns where the shards are."""
        return Remote(Bucket(self.store), self.shard_cache, verify=self.verify_shards) if self.store else Folders()

    def workers(self, start: Start) -> Tasks | None:
        """Returns the processes that share the work of encoding or drawing; None if this process does it alone."""
        alone = self.launcher.count(self.processes) == 1 and self.launcher.name == "local"
        return None if alone else self.launcher.workers(start, self.processes)

    def decoding_processes(self) -> int:
        """Returns the number of processes that decode images."""
        if self.decode_processes is not None:
            return self.decode_processes
        return cores()

    def attention_here(self, precision: str) -> str:
        """Returns the attention to train with: `eager`, `sdpa` or `xformers`."""
        if self.attention != "auto":
            return self.attention
        return "eager" if self.torch_device() == "cpu" and precision == "bf16" else "sdpa"


def numbered(device: str, number: int) -> str:
    """Returns the device of a process by its number, counted from 0; if there are fewer devices, processes share them."""
    import torch

    return f"{device}:{number % torch.accelerator.device_count()}" if device in ("cuda", "xpu") else device


def device_in_words(device: object) -> str:
    """Returns a device in words, such as `cuda` or `cpu with 2 threads`."""
    import torch

    is_cpu = torch.device(str(device)).type == "cpu"  # cpu:0 in a group of processes
    return f"cpu with {torch.get_num_threads()} threads" if is_cpu else str(device)
