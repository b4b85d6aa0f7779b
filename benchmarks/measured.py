"""Runs a command, and measures its time and its peak memory."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil


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
    process = _started(arguments, cwd, None)
    return _ended(process, arguments, began)


def measured_steps(arguments: list[str], cwd: Path, few: int, steps: int) -> tuple[float, Measured]:
    """Runs `python ARGUMENTS` like `measured`; returns also the core seconds from step `few` to step `steps`, per step.

    The command says on stderr which step it has finished, as `20/60`.
    """
    began, at, said = time.monotonic(), dict[int, float](), b""
    process = _started(arguments, cwd, subprocess.PIPE)
    assert process.stderr is not None
    while part := os.read(process.stderr.fileno(), 4096):
        os.write(2, part)
        said = said[-64:] + part
        for step in (few, steps):
            if step not in at and re.search(rb"\b%d/%d\b" % (step, steps), said):
                its = psutil.Process(process.pid).cpu_times()
                at[step] = its.user + its.system
    return (at[steps] - at[few]) / (steps - few), _ended(process, arguments, began)


def _started(arguments: list[str], cwd: Path, stderr: int | None) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment, stderr=stderr)


def _ended(process: "subprocess.Popen[bytes]", arguments: list[str], began: float) -> Measured:
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(arguments)}: exit code {code}")
    return Measured(
        round(time.monotonic() - began, 1), round(usage.ru_maxrss / 2**20, 3), round(usage.ru_utime + usage.ru_stime, 2)
    )
