"""Pace: the progress bar, and the steps per second without the time of validations and checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from t2i.train.history import COLUMNS


class Pace:
    """Measures the steps per second since the last call."""

    def __init__(self, step: int) -> None:
        self._step, self._since = step, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time of the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - started

    def steps_per_second(self, step: int) -> float:
        """Returns the mean rate since the last call, up to `step`, and starts a new measurement."""
        now = time.monotonic()
        rate = (step - self._step) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        return rate


def progress_bar(step: int, steps: int, *, shown: bool) -> Any:
    """Returns the progress bar of a run from `step` on."""
    bar = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return tqdm(total=steps, initial=step, desc="training", bar_format=bar, disable=not shown)


def in_words(recent: list[list[float]], steps_per_second: float, batch_size: int) -> str:
    """Returns the mean loss of recent rows of the history, and the speed, for the progress bar."""
    loss = sum(row[COLUMNS.index("loss")] for row in recent) / len(recent)
    return f"loss {loss:.4f}, {steps_per_second:.3g} steps/s, {batch_size * steps_per_second:.3g} samples/s"
