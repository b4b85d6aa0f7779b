"""The console: how every command reads its parameters, says what is wrong, and ends."""

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

# OpenMP's threads wait for each other at every operation. By default they spin for milliseconds, which stops a machine that
# computes anything else; asleep at once, they cost an idle machine half its speed. libgomp reads this when torch loads it.
# benchmarks/busy.py measures it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# transformers and diffusers have much to say at import that a user of these commands cannot act on.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameter file.")]


def application(help: str) -> typer.Typer:
    """Returns a Typer application whose errors are one line."""
    return typer.Typer(help=help, no_args_is_help=True, pretty_exceptions_show_locals=False, add_completion=False)


def run(app: Callable[[], Any]) -> None:
    """Runs an application: an expected error is one line on stderr; 2 for a wrong parameter, 1 for all else."""
    from t2i.core.params import ParamsError
    from t2i.core.signals import end_with_parent

    if {"DVC_STAGE", "TORCHELASTIC_RUN_ID"} & os.environ.keys():  # no stage outlives the `dvc repro` or the launcher above it
        end_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show ends no stage
    try:
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


def took() -> str:
    """Returns the time since the command started, such as `12 s` or `3 min 04 s`."""
    minutes, seconds = divmod(round(time.monotonic() - _STARTED), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def command_line(command: Callable[..., Any], values: Mapping[str, Any]) -> list[str]:
    """Returns the words that call a command with these values of its options."""
    words = []
    for name, value in values.items():
        (option,) = inspect.get_annotations(command)[name].__metadata__
        words += [option.default if isinstance(option.default, str) else f"--{name.replace('_', '-')}", str(value)]
    return words


def _explained(error: Exception) -> str | None:
    """What to say of an error, or None where only its traceback says it."""
    if not isinstance(error, RuntimeError):
        return str(error)
    if "CUDA out of memory" in str(error) or "allocate memory" in str(error):  # as PyTorch has it, on either device
        return f"{error}: lower `runtime.micro_batch_size` for training, `runtime.encode_batch_size` for all else"
    return None


def printable(text: str) -> str:
    """Returns a text as one line; what a terminal would obey or cannot show (names of files may have it) is escaped."""
    line = " ".join(text.splitlines())
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line)
