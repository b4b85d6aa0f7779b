"""Runs a command, and measures its time and its peak memory."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Measured(NamedTuple):
    """The cost of a command."""

    seconds: float
    peak_gib: float
    """Largest resident set of its process."""
    core_seconds: float
    """Time on all cores together, in the program and in the system."""


ROOT = Path(__file__).parent.parent


def measured(arguments: list[str], cwd: Path) -> Measured:
    """Runs `python ARGUMENTS` with this checkout on its path, output to the terminal; exits if the command fails."""
    began = time.monotonic()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(arguments)}: exit code {code}")
    return Measured(
        round(time.monotonic() - began, 1), round(usage.ru_maxrss / 2**20, 3), round(usage.ru_utime + usage.ru_stime, 2)
    )
