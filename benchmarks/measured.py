"""A command run to its end: how long it took, and the most memory that it held."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Measured(NamedTuple):
    """What a command cost."""

    seconds: float
    peak_gib: float
    """The largest resident set of its process."""


ROOT = Path(__file__).parent.parent


def measured(arguments: list[str], cwd: Path) -> Measured:
    """Runs `python ARGUMENTS` with our packages, its output where ours goes; ends us where it fails."""
    began = time.monotonic()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(arguments)}: exit code {code}")
    return Measured(round(time.monotonic() - began, 1), round(usage.ru_maxrss / 2**20, 2))
