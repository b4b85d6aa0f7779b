"""Batches: the records of each step, their order, and their random draws.

Nothing here has state. With batch size B, step k takes positions [k B, (k + 1) B) in an endless sequence of epochs. Each epoch
is a permutation of all records, in which a record stands as often as it is repeated. The draws for a place in the batch depend
only on (seed, step, place): not on the number of processes, the micro-batches or earlier steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.data.chance import derived_seed
from t2i.data.crops import Geometry, Size
from t2i.data.records import Split, read_repeats
from t2i.data.shards import Reader, index, read_tensors

ViewConditioning = Callable[[Geometry, Size], dict[str, Tensor]]
"""Returns what the UNet is told about a view, from its geometry and the size of its latents: `Family.view_conditioning`."""


@dataclass(frozen=True)
class Draws:
    """The random draws for the images of a batch."""

    noise: Float[Tensor, "b c h w"]
    """The noise that the UNet learns to predict."""
    input_noise: Float[Tensor, "b c h w"]
    """The noise added to the latents: equal to `noise`, except with input perturbation."""
    epsilon: Float[Tensor, "b c h w"]
    """Noise for sampling from the VAE's posterior: latents are mean + std * epsilon."""
    timesteps: Int[Tensor, " b"]


@dataclass(frozen=True)
class Batch:
    """Images of one optimizer step, as stored in the caches, with their draws."""

    moments: Float[Tensor, "b m h w"]
    conditioning: dict[str, Tensor]
    draws: Draws

    def to(self, device: torch.device | str) -> "Batch":
        """Returns a copy of the batch on a device."""
        # On mps, a copy that does not block can read its source after it was freed (pytorch/pytorch#189690).
        non_blocking = torch.device(device).type != "mps"

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        drawn = {field.name: moved(getattr(self.draws, field.name)) for field in fields(Draws)}
        conditioning = {name: moved(tensor) for name, tensor in self.conditioning.items()}
        return Batch(moved(self.moments), conditioning, Draws(**drawn))


class CachedRecords:
    """The cached records of a split: moments and conditioning, joined by key."""

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
        repeats = read_repeats(embeds)
        self.epoch = [record for record, key in enumerate(self.keys) for _ in range(repeats.get(key, 1))]
        """The indices of the records in an epoch of training, before it is shuffled: each as often as it is repeated."""
        self.empty = read_tensors(embeds / "empty.safetensors")
        self._reader = Reader()

    def __len__(self) -> int:
        return len(self.keys)

    def moments(self, record: int) -> Float[Tensor, "views m h w"]:
        """Returns the moments of a record's views."""
        return self._views(record)["moments"]

    def views(self, record: int, *, flips: bool) -> list[int]:
        """Returns the indices of a record's views; `flips` says whether flipped views are included."""
        flipped = self._views(record)["flipped"].tolist()
        return [view for view, is_flipped in enumerate(flipped) if flips or not is_flipped]

    def count_captions(self, record: int) -> int:
        """Returns the number of captions of a record."""
        return len(next(iter(self._captions(record).values())))

    def conditioning(self, record: int, view: int, caption: int | None, of_view: ViewConditioning) -> dict[str, Tensor]:
        """Returns all inputs of the UNet other than latents and timesteps for one image, without a batch axis.

        Args:
            record: index of the record.
            view: index of its view.
            caption: index of its caption; None for the empty prompt.
            of_view: returns what the UNet is told about the view.
        """
        text = self.empty if caption is None else self._captions(record)
        views = self._views(record)
        original_size, crop = (tuple(views[name][view].tolist()) for name in ("original_size", "crop"))
        geometry = Geometry(original_size, crop, bool(views["flipped"][view]))
        _, _, height, width = views["moments"].shape
        return {name: t[caption or 0] for name, t in text.items()} | of_view(geometry, (height, width))

    def _views(self, record: int) -> dict[str, Tensor]:
        return self._reader.tensors(self.latents[self.keys[record]])

    def _captions(self, record: int) -> dict[str, Tensor]:
        return self._reader.tensors(self.embeds[self.keys[record]])


class Choice(NamedTuple):
    """The draws for one place in a batch, except the noise."""

    record: int
    view: int
    caption: int | None
    """Index of the caption; None for the empty prompt."""
    timestep: int


@dataclass(frozen=True)
class Batches:
    """Gives the batch of any step, in any order and any number of times."""

    records: CachedRecords
    view_conditioning: ViewConditioning
    batch_size: int
    """Images per optimizer step, over all processes."""
    use_flips: bool
    """Whether to draw flipped views, if the cache has any."""
    prompt_dropout: float
    """Probability that the empty prompt replaces an image's caption."""
    timestep_at: Callable[[float], int]
    """Maps a number in [0, 1) to a timestep."""
    noise_offset: float
    """Standard deviation of the offset added to the noise, one number per channel."""
    input_perturbation: float
    """Standard deviation of the extra noise added to the UNet's input, but not to its target."""
    seed: int

    def of_step(self, step: int, places: Sequence[int]) -> Batch:
        """Returns part of the batch of a step.

        Args:
            step: the optimizer step.
            places: places in the batch, from 0 to batch_size - 1.
        """
        moments, conditionings, noises, timesteps = [], [], [], []
        for place in places:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "draws", step, place))
            chosen = self._choose(step, place, generator)
            moments.append(self.records.moments(chosen.record)[chosen.view])
            conditionings.append(self.records.conditioning(chosen.record, chosen.view, chosen.caption, self.view_conditioning))
            noises.append(self._noise(moments[-1].shape, generator))
            timesteps.append(chosen.timestep)
        noise, input_noise, epsilon = map(torch.stack, zip(*noises, strict=True))
        draws = Draws(noise, input_noise, epsilon, torch.tensor(timesteps))
        return Batch(torch.stack(moments).float(), collate(conditionings), draws)

    def _choose(self, step: int, place: int, generator: torch.Generator) -> Choice:
        """Draws the record, view, caption and timestep for one place in a batch."""
        record = position_to_record(step * self.batch_size + place, self.records.epoch, self.seed)
        view, caption, dropout, timestep = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        views = self.records.views(record, flips=self.use_flips)
        kept = None if dropout < self.prompt_dropout else int(caption * self.records.count_captions(record))
        return Choice(record, views[int(view * len(views))], kept, self.timestep_at(timestep))

    def _noise(self, moments: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draws `noise`, `input_noise` and `epsilon` of `Draws` for one place in a batch."""
        shape = (moments[0] // 2, *moments[1:])
        plain, epsilon = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        noise = plain + self.noise_offset * torch.randn((shape[0], 1, 1), generator=generator)
        if not self.input_perturbation:
            return noise, noise, epsilon
        return noise, noise + self.input_perturbation * torch.randn(shape, generator=generator), epsilon


def collate(conditionings: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stacks the conditioning of images into that of a batch, in fp32."""
    return {name: torch.stack([one[name] for one in conditionings]).float() for name in conditionings[0]}


def micro_batches(batch_size: int, rank: int, processes: int, micro_batch_size: int | None) -> list[range]:
    """Returns the places in each batch that a process computes, split into micro-batches.

    Args:
        batch_size: images per optimizer step, over all processes.
        rank: the process, from 0.
        processes: number of processes.
        micro_batch_size: most images per micro-batch; None for all at once.

    Raises:
        ValueError: if the batch size is not a multiple of the number of processes.
    """
    own, rest = divmod(batch_size, processes)
    if rest:
        raise ValueError(
            f"`train.batch_size` {batch_size} is not a multiple of `runtime.processes` {processes}: change one of them"
        )
    size = min(micro_batch_size or own, own)
    first = rank * own
    return [range(start, min(start + size, first + own)) for start in range(first, first + own, size)]


def position_to_record(position: int, records: Sequence[int], seed: int) -> int:
    """Returns the record at a position in the endless sequence of epochs.

    Args:
        position: counted from 0.
        records: the records of an epoch, before it is shuffled; a record may be there several times.
        seed: decides the order of each epoch.
    """
    epoch, place = divmod(position, len(records))
    return records[epoch_order(seed, epoch, len(records))[place]]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, records: int) -> tuple[int, ...]:
    """Returns the order of an epoch: a permutation of the numbers below `records`."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return tuple(torch.randperm(records, generator=generator).tolist())
