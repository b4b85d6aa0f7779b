"""Jobs: makes a whole set of shards, in one process or several, or the part of it that falls to one process."""

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from tqdm import tqdm

from t2i.core.launcher import Tasks
from t2i.core.machine import cores
from t2i.data.storage import Storage
from t2i.encode.part import Part
from t2i.encode.shard_set import ShardSet, own_files, part_of_set, store_folder, whole_set
from t2i.encode.store import Store
from t2i.model.runtime import Runtime

_TASKS = 256
"""Most tasks that several processes share: so many that none waits long for the slowest one at the end."""


@runtime_checkable
class Job(Protocol):
    """The encoding of a set."""

    kind: str
    """Name of the work, such as `encode-images`."""
    storage: Storage
    """Where the shards are."""

    @property
    def made_by(self) -> Mapping[str, Any]:
        """Everything except code that decides the set."""

    @property
    def records_by(self) -> Mapping[str, Any]:
        """Everything except code and the record's own input that decides a record."""

    @property
    def code(self) -> Sequence[str]:
        """Paths below t2i/ of the code that decides the records."""

    @property
    def shards(self) -> Mapping[str, int]:
        """Names of the shards, in order, and their numbers of records."""

    def check(self, shards: Collection[str]) -> None:
        """Raises a ValueError if the input of some shards is damaged."""
        ...

    def encode(self, made: ShardSet, shards: Sequence[str]) -> Iterator[int]:
        """Makes some shards; yields numbers of records that are done, found or encoded."""
        ...

    def finish(self, made: ShardSet) -> dict[str, Any]:
        """Adds what is not a shard to the set and checks the set; returns metrics."""
        ...

    def close(self) -> None:
        """Frees what the job holds."""
        ...


Open = Callable[[int, int], Job]
"""Opens a job in a process, from the number of its device and the number of processes that share this machine."""


def encode_set(opened: Open, out: Path, runtime: Runtime, *, finished: bool = False) -> dict[str, Any]:
    """Makes a whole set.

    Args:
        opened: opens the job; called in every process.
        out: the folder of the set.
        runtime: says which processes share the shards.
        finished: whether to refuse to encode: the parts must have encoded everything.

    Returns:
        The metrics of the job.

    Raises:
        ValueError: if another process does the same work, or the job refuses its input or its result.
    """
    with contextlib.closing(opened(0, 1)) as job:
        work = _work_of(job)
        with whole_set(work, job.made_by, out, job.storage, finished=finished) as made:
            job.check(job.shards)
            new = 0
            if not finished and (workers := runtime.workers(partial(_start, opened, work.absolute()))):
                new = _share(job, workers)
            with _progress(job, job.shards) as progress:
                for count in job.encode(made, list(job.shards)):
                    progress.update(count)
                made.wait()
            _say(job, new + made.new, work)
            return job.finish(made)


def encode_part(opened: Open, part: Part) -> int:
    """Encodes the shards of a part into the store; returns the number of their records.

    Raises:
        ValueError: if another process makes the whole set, or encodes one of these shards.
    """
    with contextlib.closing(opened(part.device, 1)) as job, part_of_set(_work_of(job), job.storage) as made:
        shards = part.shards(list(job.shards))
        job.check(shards)
        with _progress(job, shards) as progress:
            for count in job.encode(made, shards):
                progress.update(count)
        return sum(job.shards[name] for name in shards)


def _work_of(job: Job) -> Path:
    work = store_folder(job.kind, job.records_by, job.code)
    print(f"encoding {len(job.shards)} shards of {sum(job.shards.values())} records; finished ones: {work}", file=sys.stderr)
    return work


def _say(job: Job, new: int, work: Path) -> None:
    every = sum(job.shards.values())
    others = "" if new == every else f"; {'the others' if new else 'all of them'} were in {work}"
    print(f"encoded {new} of {every} records{others}", file=sys.stderr)


def _progress(job: Job, shards: Sequence[str] | Mapping[str, int]) -> Any:
    return tqdm(total=sum(job.shards[name] for name in shards), desc="encoding", unit=" records")


def _share(job: Job, workers: Tasks) -> int:
    """Encodes all shards into the store, in several processes; returns the number of records that were not there before."""
    new, names, size = 0, list(job.shards), max(1, len(job.shards) // _TASKS)
    with contextlib.closing(workers), _progress(job, names) as progress:
        for answer in [workers.submit(names[at : at + size]) for at in range(0, len(names), size)]:
            done, encoded = map(int, answer.result().split())
            progress.update(done)
            new += encoded
    return new


def _start(opened: Open, work: Path, number: int, processes: int) -> Callable[[Sequence[str]], bytes]:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // processes))
    job = opened(number, processes)
    return partial(_encode, job, Store(work, job.storage))


def _encode(job: Job, store: Store, shards: Sequence[str]) -> bytes:
    """Encodes some shards into the store; returns the numbers of their records, and of those that were not there before."""
    with own_files(store) as made:
        return f"{sum(job.encode(made, shards))} {made.new}".encode()
