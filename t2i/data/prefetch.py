"""Prefetching: a thread gathers the next micro-batches while a training step computes."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from t2i.data.ahead import Ahead
from t2i.data.batches import Batch, Batches, Buffers, Gathered

AHEAD = 2
"""Number of micro-batches that are gathered before they are needed."""


class Prefetcher:
    """Gives the micro-batches of a process.

    Args:
        batches: the batches of training.
        places: places in each batch that the process computes, one range per micro-batch.
        device: the device of the UNet.

    Raises:
        ValueError: if the shards that a batch can need do not fit on this disk.
    """

    def __init__(self, batches: Batches, places: list[range], device: torch.device | str) -> None:
        self._shards = Ahead(batches)
        self.batches, self.places, self._device = batches, places, device
        self._buffers = [Buffers(device) for _ in range(AHEAD + 1)]
        self._thread = ThreadPoolExecutor(1, "prefetch", _use_device, (device,))
        self._pending: deque[tuple[int, Future[Gathered]]] = deque()
        self.while_waiting: Callable[[], None] = lambda: None
        """Called twice a second while a micro-batch is not ready, such as when a store is out of reach; may raise."""
        self.waited_seconds = 0.0
        """How long `batch` has waited so far."""

    def batch(self, step: int, number: int) -> Batch:
        """Returns a micro-batch of a step on the device. Any order works; in the order of the steps, it is ready early.

        Raises:
            ValueError: if a record is damaged.
            StoreLost: if a shard does not come.
        """
        return self.batches.on_device(self.gathered(step, number), self._device)

    def gathered(self, step: int, number: int) -> Gathered:
        """Returns a micro-batch of a step as it is stored; its memory is used again once the next one was asked for."""
        wanted = step * len(self.places) + number
        while self._pending and self._pending[0][0] != wanted:  # after an interruption, or an overflow of fp16 gradients
            self._pending.popleft()[1].cancel()
        for ahead in range(wanted + len(self._pending), wanted + AHEAD + 1):
            self._pending.append((ahead, self._thread.submit(self._gather, ahead)))
        _, gathered = self._pending.popleft()
        began = time.perf_counter()
        while not gathered.done() and not wait([gathered], timeout=0.5).done:
            self.while_waiting()
        self.waited_seconds += time.perf_counter() - began
        return gathered.result()

    def _gather(self, wanted: int) -> Gathered:
        step, number = divmod(wanted, len(self.places))
        first = step * self.batches.batch_size
        self._shards.at(first + self.places[number].start, first + self.places[number].stop - 1)
        return self.batches.gather(step, self.places[number], self._buffers[wanted % len(self._buffers)])

    def close(self) -> None:
        """Ends the thread, and all waiting for shards."""
        self.batches.records.storage.close()
        self._thread.shutdown(wait=True, cancel_futures=True)


def _use_device(device: torch.device | str) -> None:
    """Makes a device the thread's own; the thread would else use the first GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
