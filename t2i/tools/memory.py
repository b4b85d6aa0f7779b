"""Memory: what training holds on its device, and what is free there."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from safetensors import safe_open

from t2i.core.files import in_bytes
from t2i.model.runtime import Runtime
from t2i.train.section import Train


def count_weights(unet: Path, trainable: str) -> tuple[int, int]:
    """Returns how many parameters of a UNet are trained, and how many there are, from its files' headers alone."""
    trained = whole = 0
    for file in unet.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                count = torch.Size(weights.get_slice(name).get_shape()).numel()
                whole += count
                trained += count if re.search(trainable, name) else 0
    return trained, whole


def state_bytes(section: Train, runtime: Runtime, trained: int, all_weights: int) -> int:
    """Returns the bytes that weights, gradients, the optimizer and, where it lies beside them, the EMA take on a device.

    Processes on the CPU share it, those on GPUs have one each.
    """
    optimizer = 2 if section.optimizer.name == "adamw_8bit" else 8
    buckets = 4 if runtime.processes > 1 else 0
    cpu = runtime.torch_device() == "cpu"
    ema = 0 if runtime.ema_device == "cpu" and not cpu else 4
    return (all_weights * 4 + trained * (4 + optimizer + ema + buckets)) * (runtime.processes if cpu else 1)


def checkpoints_bytes(runtime: Runtime, trained: int) -> int:
    """Returns the bytes on disk of the checkpoints that are kept, and of the one that is being written."""
    return (runtime.keep_checkpoints + 1) * 16 * trained


def available_memory(runtime: Runtime) -> int:
    """Returns the bytes that are free where training will run."""
    if runtime.torch_device() == "cpu":
        return int(psutil.virtual_memory().available)
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


def peak_memory(runtime: Runtime) -> int:
    """Returns the most bytes that this process ever held: on a GPU there, else in all."""
    if runtime.torch_device() != "cpu":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def enough_memory(runtime: Runtime) -> Iterator[None]:
    """Turns what PyTorch raises for want of memory into a MemoryError.

    On the CPU, under Linux, what is free now is a limit while the block runs: the kernel would end a process that goes beyond.
    """
    limited = sys.platform == "linux" and runtime.torch_device() == "cpu"
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = psutil.Process().memory_info().data + available_memory(runtime) if limited else soft
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"{in_bytes(available_memory(runtime))} of free memory do not suffice") from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch raised it for want of memory: on a GPU, in cuBLAS, or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("ALLOC_FAILED", "allocate memory")
    )
