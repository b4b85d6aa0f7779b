"""Group: the processes that train together, on one machine or on several, and what they say to each other.

Messages go through the store (TCP, on the machine of the first process) and through gloo; gradients through gloo or NCCL.
"""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from t2i.core.patience import patience_seconds
from t2i.model.checks import in_one_line
from t2i.model.launch import in_process_group
from t2i.train.watch import RESUME, Watch

JOIN_MINUTES = 10
"""How long a process waits for the others of its group to start."""

_DAY = timedelta(days=1)
"""How long messages between CPUs wait, such as while the first process validates; the watch notices a process that is lost."""


@dataclass(frozen=True)
class Group:
    """The processes of a run, one of which is this one. A process on its own is a group of one."""

    rank: int
    """The number of this process, counted from 0."""
    names: list[str]
    """What messages call each process, such as `process 1 of 2 (on HOST)`."""
    store: Any
    """A store of torch that all processes share; None in a group of one."""
    messages: Any
    """The process group for messages between CPUs, which wait for no GPU; None in a group of one."""

    @property
    def first(self) -> bool:
        """Whether this process is the first one, which alone reads checkpoints and writes."""
        return self.rank == 0

    @property
    def size(self) -> int:
        """The number of processes."""
        return len(self.names)

    def compare(self, about: str, facts: Mapping[str, Any]) -> None:
        """Compares facts, by name, with those of the first process; every process must call this.

        Raises:
            ValueError: in every process, if those of one differ; says which process, and in what.
        """
        first, *others = self._of_all(about, facts)
        for name, theirs in zip(self.names[1:], others, strict=True):
            differing = [fact for fact in first | theirs if theirs.get(fact) != first.get(fact)]
            if differing:
                shown = ", ".join(f"{fact}{_instead(theirs.get(fact), first.get(fact))}" for fact in differing)
                raise ValueError(
                    f"{name} differs from {self.names[0]} in {shown}: give all machines the same parameters, base, caches "
                    "and versions, then start all processes again"
                )

    def agree(self, signal: int) -> int:
        """Returns the signal that this or any other process received (0: none), so that all stop after the same step."""
        if self.size == 1:
            return signal
        largest = torch.tensor(signal)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, self.messages)
        return int(largest)

    def wait(self) -> None:
        """Blocks until every process has made this call."""
        self.agree(0)

    def told(self, about: str, content: Any) -> Any:
        """Returns what the first process gives as `content`, which JSON can represent."""
        if self.first and self.size > 1:
            self.store.set(about, json.dumps(content))
        return content if self.first else json.loads(self._get([about])[0])

    def send(self, tensor: Tensor) -> None:
        """Copies a contiguous CPU tensor of the first process into those of the others, which have its type and shape."""
        if self.size > 1 and tensor.numel():
            distributed.broadcast(tensor.view(-1).view(torch.uint8), src=0, group=self.messages)

    def _of_all(self, about: str, content: Any) -> list[Any]:
        """Returns what each process gives as `content`."""
        if self.size == 1:
            return [content]
        self.store.set(f"{about}/{self.rank}", json.dumps(content))
        return list(map(json.loads, self._get([f"{about}/{rank}" for rank in range(self.size)])))

    def _get(self, keys: list[str]) -> list[bytes]:
        while not self.store.check(keys):  # not `wait`, which calls no signal handler
            time.sleep(0.1)
        found: list[bytes] = self.store.multi_get(keys)
        return found


def _instead(got: Any, wanted: Any) -> str:
    """Returns both values as text, or nothing if one is a digest."""
    return "" if max(len(str(got)), len(str(wanted))) > 40 else f" ({got} instead of {wanted})"


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """Connects this process to the others that its launcher names, if any, and watches them while the block runs.

    If the block fails, the others end within seconds, with its message. If a process is silent, the others end: see `Watch`.

    Args:
        device: `cpu`, `cuda` or `xpu`, which gloo, nccl and xccl connect.

    Raises:
        ValueError: if the others do not start within JOIN_MINUTES, a process has another device, or a connection breaks.
    """
    if not in_process_group():
        yield Group(0, ["the process"], None, None)
        return
    patience = patience_seconds()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with _ended_by_signals():  # the wait is in C++, where Python's handlers are not called
        store = _store(rank, size)
        hosts = _hosts(store, rank, size)
    names = [f"process {number} of {size} (on {host})" for number, host in enumerate(hosts)]
    watch = Watch(store.clone(), rank, names, patience)
    try:
        Group(rank, names, store, None).compare("device", {"`runtime.device`": device})
        yield Group(rank, names, store, _connected(device, store, rank, size, patience))
    except SystemExit:
        watch.leave()
        raise
    except BaseException as error:
        if _is_of_connection(error):
            watch.linger()  # it may know more
            reason = re.sub(r"^\[\S+\] ", "", in_one_line(error)).partition(". ")[0]  # without the place in gloo's code
            raise ValueError(f"the connection to another process broke ({reason}); {RESUME}") from None
        watch.fail(str(error) or type(error).__name__)
        raise
    watch.leave()


def _connected(device: str, store: Any, rank: int, size: int, patience: float) -> Any:
    """Connects the processes; returns the group for messages between CPUs.

    A step waits at most twice the patience for the others' gradients: the watch comes first, and says more.
    """
    backend = distributed.get_default_backend_for_device(device)
    timeout = timedelta(seconds=2 * patience)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return distributed.new_group(backend="gloo", timeout=_DAY)


def _is_of_connection(error: BaseException) -> bool:
    """Returns whether an error says that a connection broke; gloo has no type of its own."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _store(rank: int, size: int) -> Any:
    """Returns the store of this start of the group."""
    from torch.distributed.distributed_c10d import PrefixStore  # not every build of PyTorch has them
    from torch.distributed.rendezvous import rendezvous

    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    print(f"process {rank} of {size} (RANK of WORLD_SIZE) waits for the others at {place}", file=sys.stderr, flush=True)
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=JOIN_MINUTES)))
    except distributed.DistError as error:
        raise _incomplete(rank, size, str(error).splitlines()[0]) from None
    return PrefixStore(f"t2i/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _hosts(store: Any, rank: int, size: int) -> list[str]:
    """Returns the host of each process, once all have started."""
    deadline = time.monotonic() + 60 * JOIN_MINUTES
    keys = [f"host/{number}" for number in range(size)]
    store.set(keys[rank], socket.gethostname())
    while not store.check(keys):
        if time.monotonic() > deadline:
            lacking = [str(number) for number, key in enumerate(keys) if not store.check([key])]
            raise _incomplete(rank, size, f"not there: {', '.join(lacking)}")
        time.sleep(0.1)
    return [host.decode() for host in store.multi_get(keys)]


def _incomplete(rank: int, size: int, reason: str) -> ValueError:
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return ValueError(
        f"process {rank} of {size} waited {JOIN_MINUTES} minutes at {place} for the others ({reason}): "
        "start all of them, or unset WORLD_SIZE for a single process"
    )


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets SIGINT and SIGTERM end the process at once while the block runs."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
