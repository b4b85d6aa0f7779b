"""Watch: notices within minutes that a process of a group is lost, whatever the others are doing, and ends them."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

_LEFT = "left"
_FAILED = "failed: "

RESUME = "run the same command on all machines to resume from the newest checkpoint"


class Watch:
    """Tells the others every second that this process lives, and ends it if another one has failed or is silent.

    So a process is noticed that was killed or stopped, whose machine or network is gone, or that raised an error, also while
    this one computes, saves or waits. One thread talks to the store, and may hang with it; another one judges what it heard.
    Silence is counted only while this process itself runs.

    Args:
        store: a connection to the group's store, which nothing else uses.
        rank: the number of this process.
        names: what messages call each process.
        patience_seconds: how long a process may be silent.
    """

    def __init__(self, store: Any, rank: int, names: Sequence[str], patience_seconds: float) -> None:
        self._store, self._rank, self._names, self._patience = store, rank, names, patience_seconds
        self._pause = min(1.0, patience_seconds / 10)
        self._keys = [f"alive/{number}" for number in range(len(names))]
        self._heard = [""] * len(names)
        self._last_word = _LEFT
        self._over = threading.Event()
        self._talker = threading.Thread(target=self._talk, daemon=True, name="watch: talk")
        self._talker.start()
        threading.Thread(target=self._judge, daemon=True, name="watch: judge").start()

    def leave(self) -> None:
        """Stops watching, and tells the others that this process has done its part."""
        self._over.set()
        self._talker.join(2 * self._pause)

    def fail(self, message: str) -> None:
        """Stops watching, tells the others that this process has failed, and waits until they can have heard it."""
        self._last_word = _FAILED + "".join(letter if letter.isprintable() else " " for letter in message[:500])
        self.leave()
        time.sleep(2 * self._pause)

    def linger(self) -> None:
        """Waits for what the others may still say, which ends this process; else stops watching."""
        time.sleep(4 * self._pause)
        self._over.set()

    def _talk(self) -> None:
        own, count = self._keys[self._rank], 0
        with contextlib.suppress(RuntimeError):  # the store is gone, and `_judge` counts the silence
            while not self._over.is_set():
                self._store.set(own, str(count := count + 1))
                self._heard = [word.decode() for word in self._store.multi_get(self._keys)]
                self._over.wait(self._pause)
            self._store.set(own, self._last_word)

    def _judge(self) -> None:
        before, silent = self._heard, [0.0] * len(self._keys)
        while not self._over.wait(self._pause):
            heard = self._heard
            for number, word in enumerate(heard):
                if word.startswith(_FAILED):
                    self._end(f"{self._names[number]} {word}")
                lives = word == _LEFT or word != before[number]
                silent[number] = 0.0 if lives else silent[number] + self._pause
            before = heard
            if max(silent) >= self._patience:
                self._end(f"{self._who(silent)} was silent for {self._patience:g} s: it or the network stopped; {RESUME}")

    def _who(self, silent: Sequence[float]) -> str:
        """Returns what has been silent the longest. If not even the own words come back, that is the store."""
        if silent[self._rank] > self._patience / 2:
            return f"the machine of {self._names[0]}, with the store,"
        return self._names[silent.index(max(silent))]

    def _end(self, message: str) -> None:
        time.sleep(2 * self._pause)  # the end of the first process can close the store: the others must hear the same before
        print(f"\nerror: {message}", file=sys.stderr, flush=True)
        os._exit(1)
