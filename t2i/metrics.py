"""Metrics: one function each, on unit-normalised CLIP features or on the UNet's own error."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from t2i.batches import CachedRecords, collate, derived_seed
from t2i.clip import Clip
from t2i.diffusion import add_noise, prediction_target
from t2i.family import Family
from t2i.latents import sample_latents
from t2i.sampling import Evaluate, HeldOut, Inputs

Metrics = dict[str, float | int]
"""Figures by name; counts are integers."""


def measure(
    params: Evaluate,
    family: Family,
    inputs: Inputs,
    records: HeldOut,
    drawn: Sequence[Image.Image],
    clip: Clip,
    *,
    batch_size: int,
    device: str,
) -> Metrics:
    """Returns every metric of a model, from the images it drew of the held-out prompts and from its UNet."""
    images, prompts, real = clip.image_features(drawn), clip.text_features(records.prompts), clip.image_features(records.real)
    unet = family.load_unet(random=False).eval().to(device)
    cached = CachedRecords(inputs.latents, inputs.embeds, "heldout")
    return {
        "prompts": len(drawn),
        "heldout_loss": heldout_loss(unet, family, cached, params.timesteps_per_record, params.seed, batch_size, device),
        "cmmd": cmmd(real, images),
        "prompt_retrieval": prompt_retrieval(images, prompts),
        "clip_score": clip_score(images, prompts),
    }


def cmmd(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m d"]) -> float:
    """Returns CMMD, the squared maximum mean discrepancy times 1000 (Jayasumana et al. 2024, arXiv 2401.09603).

    Gaussian kernel of sigma 10, biased estimate. With so wide a kernel it is nearly the squared distance of the means:
    it sees a change of look at once, and content hardly.
    """

    def mean_kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x.double(), y.double()).square() / (2 * 10.0**2)).mean()

    return 1000 * (mean_kernel(real, real) + mean_kernel(drawn, drawn) - 2 * mean_kernel(real, drawn)).item()


def prompt_retrieval(images: Float[Tensor, "n d"], prompts: Float[Tensor, "n d"]) -> float:
    """Returns the share of images whose own prompt has the highest cosine among all prompts."""
    own = torch.arange(len(images))
    return ((images @ prompts.T).argmax(dim=1) == own).double().mean().item()


def clip_score(images: Float[Tensor, "n d"], prompts: Float[Tensor, "n d"]) -> float:
    """Returns the mean cosine of images and their prompts, times 100; only differences on the same prompts mean anything."""
    return 100 * (images * prompts).sum(dim=1).double().mean().item()


@torch.no_grad()
def heldout_loss(
    unet: nn.Module, family: Family, records: CachedRecords, timesteps_per_record: int, seed: int, batch_size: int, device: str
) -> float:
    """Returns the unweighted denoising error on held-out records.

    Mean moments, the first caption, no dropout; the middles of `timesteps_per_record` equal stretches of the schedule;
    noise that depends on the seed, the record and the timestep alone. So two models are compared on the very same inputs.
    """
    schedule = len(family.alphas_cumprod)
    grid = [(2 * n + 1) * schedule // (2 * timesteps_per_record) for n in range(timesteps_per_record)]
    pairs = [(record, timestep) for record in range(len(records)) for timestep in grid]
    errors = []
    for at in range(0, len(pairs), batch_size):
        chunk = pairs[at : at + batch_size]
        moments = torch.stack([records.moments(record)[0] for record, _ in chunk]).float()
        conditioning = collate([{name: t[0] for name, t in records.conditioning(record).items()} for record, _ in chunk])
        latents = sample_latents(moments, None, family.scaling_factor, family.shift_factor)
        noise = torch.stack([_noise(latents.shape[1:], seed, records.keys[record], timestep) for record, timestep in chunk])
        timesteps = torch.tensor([timestep for _, timestep in chunk])
        a = family.alphas_cumprod[timesteps]
        noisy_latents, target = add_noise(latents, noise, a), prediction_target(latents, noise, a, family.prediction_type)
        prediction = family.predict(
            unet, noisy_latents.to(device), timesteps.to(device), {name: t.to(device) for name, t in conditioning.items()}
        )
        errors.append((prediction.cpu().float() - target).square().mean(dim=(1, 2, 3)))
    return torch.cat(errors).double().mean().item()


def _noise(shape: torch.Size, seed: int, key: str, timestep: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(derived_seed(seed, "heldout", key, timestep)))


def rounded(metrics: Metrics) -> Metrics:
    """Returns metrics to five significant digits, counts as they are: what differs beyond is rounding."""
    return {name: value if isinstance(value, int) else float(f"{value:.5g}") for name, value in metrics.items()}
