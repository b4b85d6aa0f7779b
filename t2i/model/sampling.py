"""Sampling: draws images from prompts; the noise of each image depends only on its seed and name."""

from collections.abc import Sequence

import torch
from PIL import Image
from tqdm import tqdm

from t2i.data.chance import derived_seed
from t2i.model.family import Drawing, Family
from t2i.model.precision import computing_in


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
                    how,
                )
            progress.update(len(chunk))
    return drawn
