"""Batches: which records a step takes, in which order, and everything that is drawn for them.

Nothing here has a state. Step k takes positions [k B, (k + 1) B) of the endless concatenation of the epochs' permutations,
and all that is drawn for a place of the batch is a function of (seed, step, place): never of processes, micro-batches, or
what came before.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.data.records import Split
from t2i.data.shards import Reader, index, read_tensors


@dataclass(frozen=True)
class Draws:
    """What chance decides for each image of a batch."""

    noise: Float[Tensor, "b c h w"]
    """What the UNet is asked for."""
    input_noise: Float[Tensor, "b c h w"]
    """What the latents are noised with: the same, but for input perturbation."""
    epsilon: Float[Tensor, "b c h w"]
    """The VAE's: latents are mean + std * epsilon."""
    timesteps: Int[Tensor, " b"]


@dataclass(frozen=True)
class Batch:
    """Some images of an optimizer step, as the caches have them."""

    moments: Float[Tensor, "b m h w"]
    conditioning: dict[str, Tensor]
    draws: Draws

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the batch on a device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        drawn = {field.name: moved(getattr(self.draws, field.name)) for field in fields(Draws)}
        conditioning = {name: moved(tensor) for name, tensor in self.conditioning.items()}
        return Batch(moved(self.moments), conditioning, Draws(**drawn))


class CachedRecords:
    """The records of a split: moments and conditioning, joined by key."""

    def __init__(self, latents: Path, embeds: Path, split: Split) -> None:
        self.latents = {member.key: member for member in index(latents, split)}
        self.embeds = {member.key: member for member in index(embeds, split)}
        if self.latents.keys() != self.embeds.keys():
            lone = sorted(self.latents.keys() ^ self.embeds.keys())[0]
            has, lacks = (latents, embeds) if lone in self.latents else (embeds, latents)
            raise ValueError(
                f"record {lone} is in {has} but not in {lacks}: they were made from different datasets; run `dvc repro`"
            )
        self.keys = sorted(self.latents)
        self.empty = read_tensors(embeds / "empty.safetensors")
        self._reader = Reader()

    def __len__(self) -> int:
        return len(self.keys)

    def moments(self, record: int, *, flips: bool = True) -> Float[Tensor, "views m h w"]:
        """Returns the moments of a record's views, with those that are flipped or without."""
        tensors = self._reader.tensors(self.latents[self.keys[record]])
        return tensors["moments"] if flips else tensors["moments"][tensors["flipped"] == 0]

    def conditioning(self, record: int) -> dict[str, Tensor]:
        """Returns each conditioning tensor [captions, ...] of a record."""
        return self._reader.tensors(self.embeds[self.keys[record]])


@dataclass(frozen=True)
class Sampler:
    """Gives the batch of any step, in any order, as often as asked."""

    records: CachedRecords
    batch_size: int
    """Images of an optimizer step, over all processes."""
    use_flips: bool
    """Whether flipped views are drawn, where there are any."""
    prompt_dropout: float
    """Probability that an image's conditioning is that of the empty prompt."""
    timestep_at: Callable[[float], int]
    """Gives a timestep for a number of [0, 1)."""
    noise_offset: float
    """Standard deviation of what is added to the noise, a number a channel."""
    input_perturbation: float
    """Standard deviation of what is added to the noise in the UNet's input alone."""
    seed: int

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        """Returns some places, from 0 to batch_size - 1, of a step's batch."""
        moments, conditionings, noise, input_noise, epsilon, timesteps = [], [], [], [], [], []
        for place in places:
            record = position_to_record(step * self.batch_size + place, len(self.records), self.seed)
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "draws", step, place))
            view, caption, dropout, timestep = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            views, captions = self.records.moments(record, flips=self.use_flips), self.records.conditioning(record)
            moments.append(views[int(view * len(views))])
            conditionings.append(
                {name: t[0] for name, t in self.records.empty.items()}
                if dropout < self.prompt_dropout
                else {name: t[int(caption * len(t))] for name, t in captions.items()}
            )
            shape = (views.shape[1] // 2, *views.shape[2:])
            plain, of_vae = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
            offset = torch.randn((shape[0], 1, 1), generator=generator)
            perturbation = torch.randn(shape, generator=generator) if self.input_perturbation else 0.0
            noise.append(plain + self.noise_offset * offset)
            input_noise.append(noise[-1] + self.input_perturbation * perturbation)
            epsilon.append(of_vae)
            timesteps.append(self.timestep_at(timestep))
        draws = Draws(torch.stack(noise), torch.stack(input_noise), torch.stack(epsilon), torch.tensor(timesteps))
        return Batch(torch.stack(moments).float(), collate(conditionings), draws)


def collate(conditionings: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the conditioning of a batch in fp32, of that of its images."""
    return {name: torch.stack([one[name] for one in conditionings]).float() for name in conditionings[0]}


def micro_batches(batch_size: int, rank: int, processes: int, micro_batch_size: int | None) -> list[range]:
    """Returns the places that a process takes of each step, cut into what it holds at once.

    Raises:
        ValueError: where the processes cannot share the batch evenly.
    """
    share, rest = divmod(batch_size, processes)
    if rest:
        raise ValueError(
            f"`train.batch_size` {batch_size} is no multiple of `runtime.processes` {processes}: change one of them"
        )
    size = min(micro_batch_size or share, share)
    first = rank * share
    return [range(start, min(start + size, first + share)) for start in range(first, first + share, size)]


def position_to_record(position: int, records: int, seed: int) -> int:
    """Returns the record at a position of the endless concatenation of the epochs' permutations."""
    epoch, place = divmod(position, records)
    return epoch_order(seed, epoch, records)[place]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, records: int) -> tuple[int, ...]:
    """Returns an epoch's permutation of the records: each of them once."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return tuple(torch.randperm(records, generator=generator).tolist())


def derived_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed that any change of any part changes altogether."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
