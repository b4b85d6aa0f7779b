"""The console: options, error messages and exit codes that all commands share."""

import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

_STARTED = time.monotonic()

FREED_BYTES = 1 << 30
"""Freed memory that a command keeps for its next use: a small network on a CPU needs no new memory after its first step."""

# OpenMP threads wait for each other at every operation. By default they spin for milliseconds, which slows a command on a busy
# machine several times; without any spinning, a command takes a third longer on an idle machine. libgomp reads this when torch
# loads it. benchmarks/busy.py measures both.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# By the first two, oneDNN would compute fp32 in another type, which `train.precision` decides; by the others, transformers and
# diffusers would do without torch.
for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "USE_TORCH", "USE_TF", "USE_FLAX", "USE_JAX"):
    os.environ.pop(name, None)

# transformers and diffusers print messages at import that a user of these commands cannot act on.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameter file.")]


def application(help: str) -> typer.Typer:
    """Returns a Typer application with the settings that all commands share."""
    return typer.Typer(help=help, no_args_is_help=True, pretty_exceptions_show_locals=False, add_completion=False)


def run(app: Callable[[], Any]) -> None:
    """Runs an application. Prints an expected error as one line on stderr and exits with 2 for a wrong parameter, else 1."""
    from t2i.core.files import check_in_repository
    from t2i.core.machine import keep_freed_memory
    from t2i.core.params import ParamsError
    from t2i.core.signals import end_with_parent

    keep_freed_memory(FREED_BYTES)
    if {"DVC_STAGE", "TORCHELASTIC_RUN_ID"} & os.environ.keys():  # a stage must not outlive what started it
        end_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show must not end a stage
    try:
        if "DVC_STAGE" in os.environ:
            check_in_repository(Path("data"))
        app()
    except ParamsError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        said = _explained(error)
        if said is None or os.environ.get("T2I_TRACEBACK"):
            raise
        print(f"error: {printable(said)}", file=sys.stderr)
        sys.exit(1)


def require(inputs: Mapping[Path, str]) -> None:
    """Checks that the inputs of a command exist, before any work.

    Args:
        inputs: the command that writes each of them, such as `t2i fetch base`.

    Raises:
        ValueError: if one is missing; says which command writes it.
    """
    for path, command in inputs.items():
        if not path.exists():
            raise ValueError(f"{path}: missing; run `{command}`, or `dvc repro`, which runs every stage that is out of date")


def took() -> str:
    """Returns the time since the command started, such as `12 s` or `3 min 04 s`."""
    minutes, seconds = divmod(round(time.monotonic() - _STARTED), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def command_line(command: Callable[..., Any], values: Mapping[str, Any]) -> list[str]:
    """Returns the command-line arguments that set the options of a command to these values."""
    words = []
    for name, value in values.items():
        (option,) = inspect.get_annotations(command)[name].__metadata__
        words += [option.default if isinstance(option.default, str) else f"--{name.replace('_', '-')}", str(value)]
    return words


def _explained(error: Exception) -> str | None:
    """Returns the message for an error, or None if only the traceback explains it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if not isinstance(error, RuntimeError):
        return str(error)
    if "out of memory" in str(error) or "allocate memory" in str(error):  # the words of PyTorch on a GPU and on a CPU
        return f"{error}: lower `runtime.micro_batch_size` for training, `runtime.encode_batch_size` otherwise"
    return None


def printable(text: str) -> str:
    """Returns a text as one line; escapes control and unprintable characters, which file names can contain."""
    line = " ".join(text.splitlines())
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line)
