"""Launch: runs a command again as several processes on this machine, and forwards signals to them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from t2i.core.signals import STARTED_BY, is_echo


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
