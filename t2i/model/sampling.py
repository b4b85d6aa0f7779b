"""Sampling: draws images from prompts; the noise of each image depends only on its seed and name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from tqdm import tqdm

from t2i.data.chance import derived_seed
from t2i.data.pixels import Size
from t2i.model.family import Family
from t2i.model.precision import Precision, computing_in


@dataclass(frozen=True)
class Drawing:
    """Settings for drawing images."""

    num_inference_steps: int
    guidance_scale: float
    size_px: Size
    precision: Precision
    batch_size: int
    device: str
    negative_prompt: str = ""


def draw(how: Drawing, family: Family, prompts: Sequence[str], seeds: Sequence[tuple[int, str]]) -> list[Image.Image]:
    """Returns one image per prompt; the noise of each depends only on its seed and name, not on its place in the list."""
    drawn: list[Image.Image] = []
    with tqdm(total=len(prompts), desc="sampling", unit=" images") as progress:
        for at in range(0, len(prompts), how.batch_size):
            chunk = seeds[at : at + how.batch_size]
            with computing_in(how.precision, how.device):
                drawn += family.sample(
                    prompts[at : at + how.batch_size],
                    [torch.Generator().manual_seed(derived_seed(seed, "sample", name)) for seed, name in chunk],
                    num_inference_steps=how.num_inference_steps,
                    guidance_scale=how.guidance_scale,
                    negative_prompt=how.negative_prompt,
                    size_px=how.size_px,
                    device=how.device,
                )
            progress.update(len(chunk))
    return drawn
