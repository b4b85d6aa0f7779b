"""Memory: what training needs on its device, and what is free there."""

import contextlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import psutil
import torch
from safetensors import safe_open

from t2i.core.files import in_bytes
from t2i.model.adapter import Adapter
from t2i.model.precision import DTYPES, Precision
from t2i.model.runtime import Runtime
from t2i.train.section import Train

_resource: ModuleType | None
try:
    import resource as _resource
except ImportError:  # Windows
    _resource = None

_IN_RAM = ("cpu", "mps")
"""The devices that compute in the memory of the computer. Apple's GPUs share it with the processor."""
FP32_BYTES = 4
OPTIMIZER_BYTES = {"adamw": 2 * FP32_BYTES, "adamw_8bit": 2}
"""Bytes per trained parameter of the two moments that each optimizer keeps."""


def figure(value: float) -> str:
    """Returns a positive number for a message, without an exponent: `0.0574`, `12.3`, `2,567`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def count_weights(unet: Path, adapter: Adapter, trainable: str) -> tuple[int, int]:
    """Returns the numbers of trained parameters and of all parameters of a UNet; reads only the headers of its files."""
    shapes: dict[str, list[int]] = {}
    for file in unet.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return adapter.count(shapes, trainable), sum(map(math.prod, shapes.values()))


def base_bytes(adapter: Adapter, precision: Precision) -> int:
    """Returns the bytes per parameter of the base during training: with an adapter, it is kept in the precision of training."""
    return DTYPES[precision].itemsize if adapter.keeps_base else FP32_BYTES


def state_bytes(section: Train, runtime: Runtime, trained: int, all_weights: int) -> int:
    """Returns the bytes that weights, gradients, optimizer and EMA take on a device; no EMA if it is kept in other memory.

    All processes on a CPU share its memory and are counted together. Each process on a GPU has a device of its own.
    """
    device = runtime.torch_device()
    gradients = FP32_BYTES * (2 if runtime.processes > 1 else 1)  # several processes exchange them in buckets of the same size
    ema = 0 if runtime.ema_device == "cpu" and device not in _IN_RAM else FP32_BYTES
    per_trained = gradients + OPTIMIZER_BYTES[section.optimizer.name] + ema
    if section.adapter.keeps_base:
        per_trained += FP32_BYTES  # its weights are not among those of the base
    of_base = all_weights * base_bytes(section.adapter, section.precision)
    return (of_base + trained * per_trained) * (runtime.processes if device == "cpu" else 1)


def checkpoints_bytes(section: Train, runtime: Runtime, trained: int) -> int:
    """Returns the bytes on disk of the checkpoints that are kept, plus one that is being written: weights, EMA, optimizer."""
    return (runtime.keep_checkpoints + 1) * (2 * FP32_BYTES + OPTIMIZER_BYTES[section.optimizer.name]) * trained


def available_memory(runtime: Runtime) -> int:
    """Returns the free memory in bytes of the device that training runs on; on `cpu` and `mps`, that of the computer."""
    if runtime.torch_device() in _IN_RAM:
        return int(psutil.virtual_memory().available)
    torch.accelerator.empty_cache()
    return int(torch.accelerator.get_memory_info()[0])


def peak_memory(runtime: Runtime) -> int:
    """Returns the peak memory in bytes of this process: on the GPU if training runs there, else in RAM.

    PyTorch knows no peak on `mps`. What it holds there is close: it keeps freed memory for reuse.
    """
    if (device := runtime.torch_device()) != "cpu":
        return torch.mps.driver_allocated_memory() if device == "mps" else torch.accelerator.max_memory_allocated()
    if _resource is not None:
        return int(_resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    now = psutil.Process().memory_info()
    return int(getattr(now, "peak_wset", now.rss))


def check_maps(files: int) -> None:
    """Checks that the shards of moments and embeddings, and their indices, can be mapped at once.

    Raises:
        ValueError: if the system allows fewer maps (Linux).
    """
    limit = Path("/proc/sys/vm/max_map_count")
    try:
        most = int(limit.read_text())
    except OSError:  # other systems have no such limit
        return
    if files > most - 5000:
        raise ValueError(
            f"{files} shards and indices are mapped at once, which is too many for this system ({limit}: {most}): raise "
            "`fetch.records_per_shard` and `encode.captions.records_per_shard`"
        )


@contextmanager
def enough_memory(runtime: Runtime) -> Iterator[None]:
    """Converts PyTorch's out-of-memory errors in the block into a MemoryError.

    On the CPU under Linux, limits the process to the memory that is free now: without a limit, the kernel would kill it.
    """
    limited = _resource is not None and sys.platform == "linux" and runtime.torch_device() == "cpu"
    with _data_limit(available_memory(runtime)) if limited else contextlib.nullcontext():
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(f"{in_bytes(available_memory(runtime))} of free memory are not enough") from None


@contextmanager
def _data_limit(more: int) -> Iterator[None]:
    """Limits the memory of this process to what it has now and `more` bytes (Linux)."""
    assert _resource is not None
    soft, hard = _resource.getrlimit(_resource.RLIMIT_DATA)
    limit = psutil.Process().memory_info().data + more
    _resource.setrlimit(_resource.RLIMIT_DATA, (limit if hard == _resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        _resource.setrlimit(_resource.RLIMIT_DATA, (soft, hard))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether an error of PyTorch means out of memory: on a GPU, in cuBLAS, on the CPU, or on mps."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("ALLOC_FAILED", "allocate memory", "out of memory")
    )
