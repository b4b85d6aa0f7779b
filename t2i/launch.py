"""Launch: a command run again as several processes, with its signals passed on."""

import os
import signal
import subprocess
import sys
from types import FrameType

from t2i.interrupts import die_with_parent, end_with_parent


def in_process_group() -> bool:
    """Whether a launcher (this one, torchrun, accelerate launch) started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def relaunch(module: str, arguments: list[str], processes: int) -> int:
    """Runs `python -m module arguments` as several processes on this machine and returns the exit code.

    SIGINT and SIGTERM reach every process; the code is then 130 or 143.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", module]
    received: list[int] = []
    # A large checkpoint takes longer than the 30 s that torchrun gives its processes to end.
    environment = os.environ | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
    die_with_parent()
    child = subprocess.Popen([*command, *arguments], env=environment, start_new_session=True, preexec_fn=end_with_parent)

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        child.send_signal(signal.SIGTERM if len(received) == 1 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    code = child.wait()
    return 128 + received[0] if received else code
