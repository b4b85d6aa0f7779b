"""Launch: runs a command again as several processes, forwards signals to them, and connects them to a group."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

from t2i.core.signals import STARTED_BY, is_echo

if TYPE_CHECKING:
    import torch

JOIN_MINUTES = 10
"""How long a process waits for the others of its group to start."""

_DAY = timedelta(days=1)
"""How long they wait for each other later, such as while the first process validates."""


def in_process_group() -> bool:
    """Returns whether a launcher (this one, torchrun or accelerate launch) started this process as one of a group.

    Raises:
        ValueError: if the environment describes only a part of a group.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    if size == "1":
        return False
    numbers = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")}
    wrong = [f"{name}={value}" for name, value in numbers.items() if not value.isdecimal()]
    if not wrong and int(numbers["RANK"]) >= int(size):
        wrong = [f"RANK={numbers['RANK']}"]
    if wrong or not os.environ.get("MASTER_ADDR"):
        raise ValueError(
            f"WORLD_SIZE={size} says that this process is one of {size}, but {', '.join(wrong) or 'MASTER_ADDR='} does "
            "not say where: unset WORLD_SIZE for a single process, or start all processes with torchrun"
        )
    return int(size) > 1


def join_group(device: str) -> None:
    """Connects this process to the others of its group, if it has one; waits until they have started.

    Args:
        device: `cpu`, `cuda` or `xpu`, which gloo, nccl and xccl connect.

    Raises:
        ValueError: if the others do not start within JOIN_MINUTES.
    """
    if not in_process_group():
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    print(f"process {rank} of {size} (RANK of WORLD_SIZE) waits for the others at {place}", file=sys.stderr, flush=True)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:  # the wait is in C++, where Python's handlers are not called
        store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=JOIN_MINUTES)))
    except distributed.DistError as error:
        raise ValueError(
            f"process {rank} of {size} waited {JOIN_MINUTES} minutes at {place} for the others ({str(error).splitlines()[0]}): "
            "start all of them, or unset WORLD_SIZE for a single process"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    store.set_timeout(_DAY)
    distributed.init_process_group(
        distributed.get_default_backend_for_device(device),
        store=store,
        rank=int(rank),
        world_size=int(size),
        timeout=_DAY,
    )


def make_host_group(device: "torch.device") -> Any:
    """Returns a group for messages between CPUs, which wait for no GPU; None if the default group is one, or there is no group.

    Every process of the group must call this.
    """
    from torch import distributed

    if device.type == "cpu" or not distributed.is_initialized():
        return None
    return distributed.new_group(backend="gloo", timeout=_DAY)


def is_first_process() -> bool:
    """Returns whether this process is the only one, or the first of its group."""
    return not in_process_group() or os.environ["RANK"] == "0"


def relaunch(module: str, words: Sequence[str], processes: int) -> int:
    """Runs `python -m MODULE WORDS` as several processes on this machine; returns the exit code.

    SIGINT and SIGTERM are forwarded to every process; the exit code is then 130 or 143.
    """
    # Not `--standalone`, which unpickles whatever its open port receives.
    place = ["--master-addr=127.0.0.1", f"--master-port={_free_port()}"]
    command = [sys.executable, "-m", "torch.distributed.run", *place, f"--nproc-per-node={processes}", "-m", module]
    received: list[int] = []
    first_at = 0.0
    # Saving a large checkpoint can take longer than the 30 s that torchrun waits for its processes to end.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}  # torchrun's options
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "600"
    environment[STARTED_BY] = str(os.getpid())
    child = subprocess.Popen([*command, *words], env=environment, start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        del frame
        if received and is_echo(number, first_at):
            return
        first_at = first_at or time.monotonic()
        received.append(number)
        child.terminate() if len(received) == 1 else child.kill()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    code = child.wait()
    return 128 + received[0] if received else code


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
