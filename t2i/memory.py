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

from t2i.runtime import Runtime
from t2i.train import Train


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


def state_bytes(params: Train, runtime: Runtime, trained: int, all_weights: int) -> int:
    """Returns the bytes that weights, gradients, the optimizer and, where it lies beside them, the EMA take on the device."""
    optimizer = 2 if params.optimizer.name == "adamw_8bit" else 8
    buckets = 4 if runtime.processes > 1 else 0
    on_cpu = runtime.ema_device == "cpu" and runtime.torch_device() != "cpu"
    return all_weights * (4 if on_cpu else 8) + trained * (4 + optimizer + buckets)


def available_memory(runtime: Runtime) -> int:
    """Returns the bytes that are free where training will run."""
    if runtime.torch_device() == "cpu":
        return int(psutil.virtual_memory().available)
    return int(torch.cuda.mem_get_info()[0])


def peak_memory(runtime: Runtime) -> int:
    """Returns the most bytes that this process ever held: on a GPU there, else in all."""
    if runtime.torch_device() != "cpu":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def at_most(more: int, runtime: Runtime) -> Iterator[None]:
    """Makes a CPU's allocations beyond some more bytes fail with a RuntimeError, before the kernel ends a process (Linux)."""
    if sys.platform != "linux" or runtime.torch_device() != "cpu":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
