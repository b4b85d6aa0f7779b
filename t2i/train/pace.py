"""Pace: steps per second, not counting the time of validations and checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
