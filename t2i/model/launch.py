"""Launch: runs a command again as several processes, and forwards signals to them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from t2i.core.signals import end_with_parent, is_echo


def in_process_group() -> bool:
    """Returns whether a launcher (this one, torchrun or accelerate launch) started this process as one of a group."""
    return "WORLD_SIZE" in os.environ


def is_first_process() -> bool:
    """Returns whether this process is the only one, or the first of its group."""
    return os.environ.get("RANK", "0") == "0"


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
    environment = os.environ | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
    child = subprocess.Popen([*command, *words], env=environment, start_new_session=True, preexec_fn=end_with_parent)

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        del frame
        if received and is_echo(number, first_at):
            return
        first_at = first_at or time.monotonic()
        received.append(number)
        child.send_signal(signal.SIGTERM if len(received) == 1 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    code = child.wait()
    return 128 + received[0] if received else code


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
