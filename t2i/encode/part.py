"""Parts: a fixed share of the shards of a set, for processes that encode it together without talking to each other."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

Shard = TypeVar("Shard")


class Part(NamedTuple):
    """Part `number` of `of`, counted from 1: every `of`-th shard."""

    number: int
    of: int
    device: int = 0
    """Number of its device on this machine, counted from 0."""

    def __str__(self) -> str:
        return f"part {self.number} of {self.of}"

    def shards(self, all_shards: Sequence[Shard]) -> list[Shard]:
        """Returns the shards of this part, of all shards of a set."""
        return list(all_shards[self.number - 1 :: self.of])


def part_of(text: str) -> Part:
    """Returns the part `k/n`, with k from 1 to n, or with `env` the one that a launcher has given this process.

    A launcher counts its processes in RANK and WORLD_SIZE (torchrun), or in SLURM_PROCID and SLURM_NTASKS (srun), and its jobs
    in SLURM_ARRAY_TASK_ID (sbatch --array): with both, each job of the array shares its part among its processes.

    Raises:
        ValueError: if the text is none of these, or no launcher has set these variables.
    """
    if text == "env":
        return _from_environment()
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    number, of = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= number <= of:
        raise ValueError(f"`--part` is {text}, wanted k/n with k from 1 to n, such as 1/4, or env")
    return Part(number, of)


def _from_environment() -> Part:
    place, count, found = 0, 1, False
    if (task := _number("SLURM_ARRAY_TASK_ID")) is not None:
        first, step = _number("SLURM_ARRAY_TASK_MIN") or 0, _number("SLURM_ARRAY_TASK_STEP") or 1
        place, count, found = (task - first) // step, _number("SLURM_ARRAY_TASK_COUNT") or 1, True
    device = 0
    for rank, size, local in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")):
        own, of = _number(rank), _number(size)
        if own is not None and of:
            place, count, device, found = place * of + own, count * of, _number(local) or 0, True
            break
    if not found:
        raise ValueError(
            "`--part env`: neither RANK and WORLD_SIZE, SLURM_PROCID and SLURM_NTASKS, nor SLURM_ARRAY_TASK_ID is set: run it "
            "with torchrun, srun or sbatch --array, or give --part k/n"
        )
    return Part(place + 1, count, device)


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else None
