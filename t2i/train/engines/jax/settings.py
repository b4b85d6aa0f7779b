"""Settings: what JAX cannot do, and how it divides a batch. Imports nothing of JAX until the settings are known to fit."""

import importlib.util
import os
import warnings
from typing import Any

from t2i.core.files import work_root
from t2i.data.batches import micro_batches
from t2i.model.launch import in_process_group
from t2i.model.runtime import Runtime
from t2i.train.section import Train
from t2i.train.trackers import check_installed

EXTRA = ("jax", "torchax")
"""The modules of the extra `jax`."""

_PLATFORMS = {"auto": None, "cpu": "cpu", "cuda": "cuda"}
"""What JAX calls the values of `runtime.device`; None: the best that it finds."""


def check_settings(section: Train, runtime: Runtime) -> list[range]:
    """Checks that JAX is installed and supports the settings; starts JAX, unless it has to be connected to others first.

    Returns:
        The places in the batch that the first device computes, one range per forward pass.

    Raises:
        ValueError: if it does not; says which setting to change.
    """
    check_supported(section, runtime)
    check_installed(runtime.trackers)
    devices = 1 if in_process_group() else started(runtime).device_count()
    return micro_batches(section.batch_size // devices, 0, 1, images_at_once(section, runtime, devices))


def check_supported(section: Train, runtime: Runtime) -> None:
    """Raises a ValueError if the engine lacks what the settings ask for, or is not installed."""
    if lacking := [name for name in EXTRA if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"`runtime.engine` is jax, but {' and '.join(lacking)} is not installed: pip install 't2i[jax]', or set it to torch"
        )
    unsupported = {
        "`train.precision` is fp16": ("bf16 or fp32", section.precision == "fp16"),
        "`train.optimizer.name` is adamw_8bit": ("adamw", section.optimizer.name == "adamw_8bit"),
        "`runtime.attention` is xformers": ("auto", runtime.attention == "xformers"),
        f"`runtime.ema_device` is {runtime.ema_device}": ("null", runtime.ema_device is not None),
        f"`runtime.processes` is {runtime.processes}": ("1: a process uses all devices", runtime.processes > 1),
        f"`runtime.device` is {runtime.device}": (", ".join(_PLATFORMS), runtime.device not in _PLATFORMS),
    }
    for got, (wanted, is_set) in unsupported.items():
        if is_set:
            raise ValueError(f"{got}, which `runtime.engine` jax does not have: set it to {wanted}, or the engine to torch")


def started(runtime: Runtime) -> Any:
    """Returns the module `jax`, set up for the device and the rounding that `runtime` sets; it keeps compiled code on disk.

    Raises:
        ValueError: if JAX does not find the device.
    """
    warnings.filterwarnings("ignore", message="Explicitly requested dtype")  # int64, of which JAX makes int32
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    jax.config.update("jax_compilation_cache_dir", str((work_root() / "jax").absolute()))
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if runtime.tf32 else "float32")
    if (platform := _PLATFORMS[runtime.device]) is not None:
        jax.config.update("jax_platforms", platform)
    try:
        jax.devices()
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        raise ValueError(
            f"`runtime.device` is {runtime.device}, but JAX does not start there ({line}): set it to auto"
        ) from None
    return jax


def images_at_once(section: Train, runtime: Runtime, devices: int) -> int:
    """Returns the images per forward pass of each device: the largest equal parts that `runtime.micro_batch_size` allows.

    Raises:
        ValueError: if the batch size is not a multiple of the number of devices.
    """
    own, rest = divmod(section.batch_size, devices)
    if rest:
        raise ValueError(
            f"`train.batch_size` {section.batch_size} is not a multiple of the {devices} devices of JAX: change it"
        )
    most = min(runtime.micro_batch_size or own, own)
    return max(size for size in range(1, most + 1) if own % size == 0)
