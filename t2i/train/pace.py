"""Pace: how fast steps are taken, without the time that validations and checkpoints take between them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Steps per second since the last time it was asked."""

    def __init__(self, step: int) -> None:
        self._step, self._since = step, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time that the block takes."""
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started

    def steps_per_second(self, step: int) -> float:
        """Returns the mean rate of the steps up to `step`, and starts again from there."""
        now = time.monotonic()
        rate = (step - self._step) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        return rate
