"""Execution: how this machine runs a training step: device, precision, processes, attention."""

import importlib.util
import os
import sys
from typing import Any

import torch

from t2i.core.machine import cores
from t2i.data.batches import micro_batches
from t2i.model.family import Family
from t2i.model.launch import in_process_group
from t2i.model.precision import Precision
from t2i.model.runtime import Runtime
from t2i.train.optim import make_optimizer
from t2i.train.section import Train
from t2i.train.trackers import check_installed

MOST_OVERFLOWS = 30
"""The fp16 loss scale starts at 65536 and is halved at each overflow; after 30 it is far below what a sound run needs."""


def make_accelerator(precision: Precision, runtime: Runtime) -> Any:
    """Returns Accelerate's Accelerator.

    Args:
        precision: precision of the computations of the UNet.
        runtime: gives the device and whether TF32 is allowed.

    Raises:
        ValueError: if this machine does not support the device or the precision, or Accelerate chooses another device.
    """
    from accelerate import Accelerator

    check_precision(precision, runtime)
    device = runtime.torch_device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = runtime.tf32
    _forget_environment()
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(precision, precision), cpu=device == "cpu")
    if accelerator.device.type != device:  # Accelerate prefers the devices of packages such as torch_xla
        raise ValueError(
            f"`runtime.device` is {device} here, but Accelerate chooses {accelerator.device.type}: remove the package that "
            f"adds {accelerator.device.type} to PyTorch, or set `runtime.device` to cpu"
        )
    return accelerator


def _forget_environment() -> None:
    """Removes the variables that Accelerate would follow: the parameter file alone decides, and only `join_group` joins."""
    groups = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    for name in list(os.environ):
        if name.startswith("ACCELERATE_") or (name in groups and not torch.distributed.is_initialized()):
            del os.environ[name]


def check_settings(section: Train, runtime: Runtime) -> list[range]:
    """Checks what can be known before anything is loaded: that this machine supports the settings of training.

    Returns:
        The places in the batch that the first process computes, one range per micro-batch.

    Raises:
        ValueError: if it does not; says which setting to change.
    """
    device = runtime.torch_device()
    check_precision(section.precision, runtime)
    check_installed(runtime.trackers)
    if runtime.attention == "xformers" and (device != "cuda" or importlib.util.find_spec("xformers") is None):
        raise ValueError(_no_xformers(f"the device is {device}" if device != "cuda" else "it is not installed"))
    if section.optimizer.name == "adamw_8bit" and device != "cuda":
        raise ValueError(f"`train.optimizer.name` is adamw_8bit, which needs cuda, but the device is {device}: set it to adamw")
    _check_group(device, runtime.processes)
    make_optimizer([torch.zeros(1, requires_grad=True)], section.optimizer)
    return micro_batches(section.batch_size, 0, runtime.processes, runtime.micro_batch_size)


def _no_xformers(reason: str) -> str:
    advice = "install the extra `xformers` on a machine with cuda, or set `runtime.attention` to auto"
    return f"`runtime.attention` is xformers, which does not work here ({reason}): {advice}"


def _check_group(device: str, processes: int) -> None:
    """Raises a ValueError if several processes, as `runtime` or a launcher starts them, cannot train together on a device."""
    if device not in ("mps", "xpu") or (processes == 1 and not in_process_group()):
        return
    if device == "mps":
        raise ValueError("several processes cannot train on mps: set `runtime.processes` to 1, or `runtime.device` to cpu")
    if not torch.distributed.is_xccl_available():
        raise ValueError(
            f"several processes on xpu need XCCL, which PyTorch {torch.__version__} here lacks: set `runtime.processes` to 1"
        )


def check_precision(precision: Precision, runtime: Runtime) -> None:
    """Raises a ValueError if the device cannot train in the precision. Accelerate scales the loss of fp16 on GPUs only."""
    device = runtime.torch_device()
    if precision == "fp16" and device == "cpu":
        raise ValueError("`train.precision` fp16 needs a GPU: on a CPU, set it to bf16 or fp32")
    if precision == "bf16" and device == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise ValueError("`train.precision` bf16 on mps needs macOS 14 or newer: set it to fp16 or fp32")


def prepared_unet(family: Family, runtime: Runtime, precision: Precision, *, random: bool) -> Any:
    """Returns the UNet in training mode, with the attention and the gradient checkpointing that `runtime` sets."""
    unet: Any = family.load_unet(random=random).train()
    if runtime.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    match runtime.attention_here(precision):
        case "eager":
            from diffusers.models.attention_processor import AttnProcessor

            unet.set_attn_processor(AttnProcessor())
        case "xformers":
            try:
                unet.enable_xformers_memory_efficient_attention()
            except (ImportError, ValueError, NotImplementedError) as error:
                raise ValueError(_no_xformers(str(error))) from None
    return unet


def take_over_threads(threads: int, device: torch.device) -> None:
    """Sets the number of CPU threads to that of the checkpoint, so that results stay bit-identical.

    If the numbers differ and OMP_NUM_THREADS is set, or the machine has fewer cores, it prints that results will differ.
    """
    now = torch.get_num_threads()
    if device.type != "cpu" or threads == now:
        return
    if "OMP_NUM_THREADS" not in os.environ and threads <= cores():
        torch.set_num_threads(threads)
        return
    print(
        f"the checkpoint was made with {threads} threads, but this run has {now}: the last digits of the results will differ; "
        f"set OMP_NUM_THREADS={threads} to avoid this",
        file=sys.stderr,
    )


class Overflows:
    """Counts the overflows of fp16 gradients. At each one, the loss scaler skips the update and halves its scale."""

    def __init__(self, scaler: Any) -> None:
        self._scaler, self._in_a_row = scaler, 0

    def met(self, grad_norm: torch.Tensor) -> bool:
        """Returns whether the gradients overflowed, so that the step must be repeated. In fp16, waits for the device.

        Raises:
            ValueError: after more than MOST_OVERFLOWS overflows in a row.
        """
        if self._scaler is None or torch.isfinite(grad_norm):
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        if self._in_a_row > MOST_OVERFLOWS:
            scale = f"{self._scaler.get_scale():g}"
            raise ValueError(
                f"the gradients overflowed {self._in_a_row} times in a row, the last time at a loss scale of {scale}: "
                "lower `train.learning_rate`, or set `train.precision` to bf16 or fp32"
            )
        return True
