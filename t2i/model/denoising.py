"""Denoising error: the error of a UNet on fixed records, timesteps and noise, so that models can be compared."""

import heapq
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t2i.data.batches import collate
from t2i.data.cached import CachedRecords
from t2i.data.chance import derived_seed, hash_fraction
from t2i.model.diffusion import add_noise, prediction_target
from t2i.model.family import Family
from t2i.model.latents import sample_latents
from t2i.model.precision import Precision, computing_in


def fixed_records(records: CachedRecords, most: int, seed: int) -> list[int]:
    """Returns the numbers of at most `most` records, chosen by hash, so that new records change few of the choices."""
    return heapq.nsmallest(most, range(len(records)), key=lambda record: hash_fraction(f"{seed}:{records.key(record)}"))


def timestep_grid(schedule: int, stretches: int) -> list[int]:
    """Divides the timesteps of a schedule into `stretches` equal parts; returns the middle timestep of each."""
    return [(2 * n + 1) * schedule // (2 * stretches) for n in range(stretches)]


@torch.no_grad()
def denoising_errors(
    unet: nn.Module,
    family: Family,
    records: CachedRecords,
    places: Sequence[int],
    timesteps_per_record: int,
    seed: int,
    *,
    precision: Precision,
    batch_size: int,
    device: str | torch.device,
) -> Float[Tensor, "records timesteps"]:
    """Returns the unweighted squared error of each record at each timestep of the grid, in fp64 on the CPU.

    Uses the mean latents of the first view, the first caption and no dropout. The noise depends only on the seed, the
    record and the timestep.
    """
    grid = timestep_grid(len(family.alphas_cumprod), timesteps_per_record)
    pairs = [(place, timestep) for place in places for timestep in grid]
    errors = []
    for at in range(0, len(pairs), batch_size):
        chunk = pairs[at : at + batch_size]
        moments = torch.stack([records.moments(place)[0] for place, _ in chunk]).float()
        conditioning = collate([records.conditioning(place, family.view_conditioning) for place, _ in chunk])
        latents = sample_latents(moments, None, family.scaling_factor, family.shift_factor)
        noise = torch.stack([_noise(latents.shape[1:], seed, records.key(place), timestep) for place, timestep in chunk])
        timesteps = torch.tensor([timestep for _, timestep in chunk])
        a = family.alphas_cumprod[timesteps]
        noisy_latents, target = add_noise(latents, noise, a), prediction_target(latents, noise, a, family.prediction_type)
        with computing_in(precision, device):
            prediction = family.predict(
                unet, noisy_latents.to(device), timesteps.to(device), {name: t.to(device) for name, t in conditioning.items()}
            )
        errors.append((prediction.cpu().float() - target).square().mean(dim=(1, 2, 3)))
    return torch.cat(errors).double().view(len(places), len(grid))


def _noise(shape: torch.Size, seed: int, key: str, timestep: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(derived_seed(seed, "heldout", key, timestep)))
