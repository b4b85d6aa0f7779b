"""Patience: how long a command waits for another process, or for a store, before it gives up."""

import contextlib
import os

_SECONDS = 600.0


def patience_seconds() -> float:
    """Returns T2I_PATIENCE_SECONDS if it is set, else ten minutes.

    Raises:
        ValueError: if it is set to anything but a positive number.
    """
    text = os.environ.get("T2I_PATIENCE_SECONDS") or str(_SECONDS)
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < 1e6:
            return seconds
    raise ValueError(f"T2I_PATIENCE_SECONDS is {text!r}: set it to a number of seconds between 0 and 1e6, or unset it")
