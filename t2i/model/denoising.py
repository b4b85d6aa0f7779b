"""Denoising error: the error of a UNet on fixed records, timesteps and noise, so that models can be compared."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t2i.data.batches import collate
from t2i.data.cached import CachedRecords, ViewConditioning
from t2i.data.chance import derived_seed, hash_fraction
from t2i.model.diffusion import add_noise, prediction_target
from t2i.model.family import Family
from t2i.model.latents import sample_latents
from t2i.model.precision import Precision, computing_in


class FixedRecord(NamedTuple):
    """A record to measure UNets on, in memory."""

    key: str
    moments: Float[Tensor, "m h w"]
    """Of its first view."""
    conditioning: dict[str, Tensor]
    """Of its first view and its first caption, without a batch axis."""


def fixed_records(records: CachedRecords, most: int, seed: int, of_view: ViewConditioning) -> list[FixedRecord]:
    """Returns at most `most` records, chosen by hash, so that new records change few of the choices."""
    numbers = heapq.nsmallest(most, range(len(records)), key=lambda record: hash_fraction(f"{seed}:{records.key(record)}"))
    return [
        FixedRecord(
            records.key(number),
            records.moments(number)[0].clone(),
            {name: tensor.clone() for name, tensor in records.conditioning(number, of_view).items()},
        )
        for number in numbers
    ]


def timestep_grid(schedule: int, stretches: int) -> list[int]:
    """Divides the timesteps of a schedule into `stretches` equal parts; returns the middle timestep of each."""
    return [(2 * n + 1) * schedule // (2 * stretches) for n in range(stretches)]


@torch.no_grad()
def denoising_errors(
    unet: nn.Module,
    family: Family,
    records: Sequence[FixedRecord],
    timesteps_per_record: int,
    seed: int,
    *,
    precision: Precision,
    batch_size: int,
    device: str | torch.device,
) -> Float[Tensor, "records timesteps"]:
    """Returns the unweighted squared error of each record at each timestep of the grid, in fp64 on the CPU.

    Uses the mean latents and no dropout. The noise depends only on the seed, the
    record and the timestep.
    """
    grid = timestep_grid(len(family.alphas_cumprod), timesteps_per_record)
    pairs = [(record, timestep) for record in records for timestep in grid]
    errors = []
    for at in range(0, len(pairs), batch_size):
        chunk = pairs[at : at + batch_size]
        moments = torch.stack([record.moments for record, _ in chunk]).float()
        conditioning = collate([record.conditioning for record, _ in chunk])
        latents = sample_latents(moments, None, family.scaling_factor, family.shift_factor)
        noise = torch.stack([_noise(latents.shape[1:], seed, record.key, timestep) for record, timestep in chunk])
        timesteps = torch.tensor([timestep for _, timestep in chunk])
        a = family.alphas_cumprod[timesteps]
        noisy_latents, target = add_noise(latents, noise, a), prediction_target(latents, noise, a, family.prediction_type)
        with computing_in(precision, device):
            prediction = family.predict(
                unet, noisy_latents.to(device), timesteps.to(device), {name: t.to(device) for name, t in conditioning.items()}
            )
        errors.append((prediction.cpu().float() - target).square().mean(dim=(1, 2, 3)))
    return torch.cat(errors).double().view(len(records), len(grid))


def _noise(shape: torch.Size, seed: int, key: str, timestep: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(derived_seed(seed, "heldout", key, timestep)))
