"""Execution: how this machine runs a step of training: device, precision, processes, attention."""

import os
import sys
from datetime import timedelta
from typing import Any

import torch

from t2i.model.family import Family
from t2i.model.precision import Precision
from t2i.model.runtime import Runtime

MOST_OVERFLOWS = 30
"""fp16's scale, halved each time from 65536, is far below what any healthy run needs."""


def make_accelerator(precision: Precision, runtime: Runtime) -> Any:
    """Returns Accelerate's Accelerator.

    Args:
        precision: what the UNet computes in.
        runtime: device, TF32.

    Raises:
        ValueError: where the machine cannot do what is asked for.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    check_precision(precision, runtime)
    cpu = runtime.torch_device() == "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = runtime.tf32
    patience = InitProcessGroupKwargs(backend=None, timeout=timedelta(days=1))  # the others wait while one validates
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        cpu=cpu,
        kwargs_handlers=[patience],
    )


def check_precision(precision: Precision, runtime: Runtime) -> None:
    """Raises a ValueError where the device cannot train in a precision."""
    if precision == "fp16" and runtime.torch_device() == "cpu":
        raise ValueError("`train.precision` fp16 needs a GPU: on the CPU set bf16 or fp32")


def prepared_unet(family: Family, runtime: Runtime, precision: Precision, *, random: bool) -> Any:
    """Returns the UNet in training mode, with the attention and the gradient checkpointing that are asked for."""
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
                advice = "install the extra `xformers` on a machine with a GPU, or set `runtime.attention` to auto"
                raise ValueError(f"`runtime.attention` is xformers, which does not work here ({error}): {advice}") from None
    return unet


def take_over_threads(threads: int, device: torch.device) -> None:
    """Computes on with as many threads as a checkpoint was made with; says so if that cannot be, since bits then differ.

    OMP_NUM_THREADS, if set, is obeyed.
    """
    now = torch.get_num_threads()
    if device.type != "cpu" or threads == now:
        return
    if "OMP_NUM_THREADS" not in os.environ and threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)
        return
    print(
        f"the checkpoint was made with {threads} threads, and this run has {now}: the last digits will differ "
        f"(OMP_NUM_THREADS={threads} keeps them equal)",
        file=sys.stderr,
    )


class Overflows:
    """What fp16's loss scaler does about gradients that overflow: it leaves the weights as they are and lowers its scale."""

    def __init__(self, scaler: Any) -> None:
        self._scaler, self._in_a_row = scaler, 0

    def met(self, grad_norm: torch.Tensor) -> bool:
        """Returns whether a step came to nothing, and is to be taken again; waits for the device, in fp16 alone.

        Raises:
            ValueError: after MOST_OVERFLOWS in a row.
        """
        if self._scaler is None or torch.isfinite(grad_norm):
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        if self._in_a_row > MOST_OVERFLOWS:
            scale = f"{self._scaler.get_scale():g}"
            raise ValueError(
                f"the gradients overflowed {self._in_a_row} times in a row, in the end at a loss scale of {scale}: "
                "lower `train.learning_rate`, or set `train.precision` to bf16 or fp32"
            )
        return True
