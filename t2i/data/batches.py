"""Batches: the records of each step, and their random draws.

Nothing here has state. With batch size B, step k takes positions [k B, (k + 1) B) in an endless sequence of epochs. The draws
for a place in the batch depend only on (seed, step, place): not on the number of processes, the micro-batches or earlier steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.data.cached import CachedRecords, ViewConditioning, geometry, latent_size
from t2i.data.counter import Places, Step, key_of, normals, uniforms
from t2i.data.order import Epoch, Order
from t2i.data.reader import Field, Stored


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
    """Images of one optimizer step in fp32, with their draws, on the device of the UNet."""

    moments: Float[Tensor, "b m h w"]
    conditioning: dict[str, Tensor]
    draws: Draws


class Buffers:
    """Kept memory for the float16 tensors of a batch: fresh memory for every batch would cost a page fault per 4 kB."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._pinned = torch.device(device).type == "cuda"
        self._kept: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def rows(self, name: str, count: int, like: Field) -> Tensor:
        """Returns memory for `count` rows of a stored tensor, with the content of an earlier batch."""
        shape, dtype = (count, *like.shape[1:]), like.dtype
        if dtype != torch.float16:  # not converted by `Batch`, and so not copied on the CPU
            return torch.empty(shape, dtype=dtype)
        kept = self._kept.get(name)
        if kept is None or kept.shape[1:] != shape[1:] or len(kept) < count:
            self._kept[name] = kept = torch.empty(shape, dtype=dtype, pin_memory=self._pinned)
        return kept[:count]

    def wait(self) -> None:
        """Blocks until the device has copied what `copied` marked."""
        if self._copied is not None:
            self._copied.synchronize()

    def to(self, device: torch.device | str, tensor: Tensor) -> Tensor:
        """Returns a tensor on a device; floating-point tensors in fp32."""
        moved = tensor.to(device, non_blocking=self._pinned)
        return moved.float() if moved.is_floating_point() else moved

    def copied(self) -> None:
        """Marks the memory as free once the device has finished all copies so far."""
        if self._pinned:
            self._copied = torch.cuda.Event()
            self._copied.record()


class Choice(NamedTuple):
    """What is drawn for one place in a batch, except the noise and the timestep."""

    image: Stored
    view: int
    text: Stored
    """The captions of the record, or the empty prompt."""
    caption: int


@dataclass(frozen=True)
class Gathered:
    """Images of one optimizer step as they are stored, in memory of the CPU."""

    step: int
    places: range
    moments: Tensor
    conditioning: dict[str, Tensor]
    timesteps: Tensor
    buffers: Buffers


@dataclass(frozen=True)
class Batches:
    """Gives the batch of any step, in any order and any number of times."""

    records: CachedRecords
    view_conditioning: ViewConditioning
    order: Order
    """How the records of an epoch are shuffled."""
    batch_size: int
    """Images per optimizer step, over all processes."""
    use_flips: bool
    """Whether to draw flipped views, if the cache has any."""
    prompt_dropout: float
    """Probability that the empty prompt replaces an image's caption."""
    timesteps_at: Callable[[np.ndarray], np.ndarray]
    """Maps numbers in [0, 1) to timesteps."""
    noise_offset: float
    """Standard deviation of the offset added to the noise, one number per channel."""
    input_perturbation: float
    """Standard deviation of the extra noise added to the UNet's input, but not to its target."""
    seed: int

    @cached_property
    def epoch(self) -> Epoch:
        """The records of an epoch, in their order."""
        return self.records.epoch(self.order)

    def of_step(self, step: int, places: range, device: torch.device | str = "cpu") -> Batch:
        """Returns part of the batch of a step.

        Args:
            step: the optimizer step.
            places: places in the batch, from 0 to batch_size - 1.
            device: where the batch is needed.
        """
        return self.on_device(self.gather(step, places, Buffers(device)), device)

    def gather(self, step: int, places: range, buffers: Buffers) -> Gathered:
        """Reads the stored part of the batch of a step; runs nothing on a device, so that a thread may do it ahead."""
        buffers.wait()
        uniform = uniforms(key_of(self.seed, "choice"), step, places)
        positions = [step * self.batch_size + place for place in places]
        chosen = [
            self._choose(record, *drawn)
            for record, drawn in zip(self.epoch.records(positions, self.seed), uniform[:3].T.tolist(), strict=True)
        ]
        texts = {
            name: _stacked(buffers, name, [(one.text, one.caption) for one in chosen]) for name in self.records.empty.fields
        }
        views = [self._of_view(one) for one in chosen] if self._of_view(chosen[0]) else []
        return Gathered(
            step,
            places,
            _stacked(buffers, "moments", [(one.image, one.view) for one in chosen]),
            texts | (collate(views) if views else {}),
            torch.from_numpy(self.timesteps_at(uniform[3])),
            buffers,
        )

    def on_device(self, gathered: Gathered, device: torch.device | str) -> Batch:
        """Copies a part of a batch to a device and draws its noise there, without waiting for the device."""
        buffers, step, places = gathered.buffers, gathered.step, gathered.places
        moments = buffers.to(device, gathered.moments)
        conditioning = {name: buffers.to(device, tensor) for name, tensor in gathered.conditioning.items()}
        timesteps = buffers.to(device, gathered.timesteps)
        buffers.copied()
        return Batch(moments, conditioning, self.draws(step, places, moments, timesteps))

    def draws(self, step: Step, places: Places, moments: Float[Tensor, "b m h w"], timesteps: Int[Tensor, " b"]) -> Draws:
        """Draws the noise for places in the batch of a step, on the device of their moments; `gather` draws the timesteps."""
        _, channels, height, width = moments.shape

        def drawn(purpose: str, *shape: int) -> Tensor:
            return normals(key_of(self.seed, purpose), step, places, shape, moments.device)

        shape = (channels // 2, height, width)
        epsilon, noise = drawn("epsilon", *shape), drawn("noise", *shape)
        if self.noise_offset:
            noise = noise + self.noise_offset * drawn("offset", shape[0], 1, 1)
        input_noise = noise + self.input_perturbation * drawn("perturbation", *shape) if self.input_perturbation else noise
        return Draws(noise, input_noise, epsilon, timesteps)

    def _of_view(self, chosen: Choice) -> dict[str, Tensor]:
        return self.view_conditioning(geometry(chosen.image, chosen.view), latent_size(chosen.image))

    def _choose(self, record: int, view: float, caption: float, dropout: float) -> Choice:
        """Chooses view and caption of a record from numbers in [0, 1)."""
        image = self.records.image(record)
        views = _views(image, flips=self.use_flips)
        if dropout < self.prompt_dropout:
            return Choice(image, views[int(view * len(views))], self.records.empty, 0)
        text = self.records.text(record)
        captions, *_ = next(iter(text.fields.values())).shape
        return Choice(image, views[int(view * len(views))], text, int(caption * captions))


def _views(image: Stored, *, flips: bool) -> Sequence[int]:
    """Returns the indices of a record's views; `flips` says whether flipped views are included."""
    views = range(image.fields["moments"].shape[0])
    return views if flips else [view for view in views if not image.row("flipped", view)[0]]


def _stacked(buffers: Buffers, name: str, rows: Sequence[tuple[Stored, int]]) -> Tensor:
    """Returns one row of each record's tensor, stacked in kept memory.

    Raises:
        ValueError: if the tensors have different sizes.
    """
    first, _ = rows[0]
    like = first.fields[name]
    stacked = buffers.rows(name, len(rows), like)
    target = stacked.view(len(rows), -1).view(torch.uint8).numpy()
    for at, (stored, row) in enumerate(rows):
        field = stored.fields[name]
        if field is not like and (field.dtype, field.shape[1:]) != (like.dtype, like.shape[1:]):
            raise ValueError(
                f"the records of a batch have `{name}` of shapes {like.shape[1:]} and {stored.fields[name].shape[1:]}"
            )
        target[at] = stored.row(name, row)
    return stacked


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
