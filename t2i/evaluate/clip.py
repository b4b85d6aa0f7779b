"""CLIP for metrics: maps images and texts to unit vectors."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from t2i.model.clip import load_clip


class Clip:
    """A CLIPModel with its tokenizer and image processor, in fp32."""

    def __init__(self, folder: Path, device: str, batch_size: int) -> None:
        self.device, self.batch_size = device, batch_size
        model, self.tokenizer, self.processor = load_clip(folder)
        self.model = model.eval().to(device)

    @torch.no_grad()
    def image_features(self, images: Iterable[Image.Image]) -> Float[Tensor, "n d"]:
        """Returns the unit-normalised features of RGB images. At most one batch of images is in memory at once.

        An image that is not square is squeezed into a square: the processor would crop its ends away.
        """
        features, remaining = [], iter(images)
        while batch := list(islice(remaining, self.batch_size)):
            pixels = self.processor(images=[_squared(image) for image in batch], return_tensors="pt").pixel_values
            features.append(self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output.cpu())
        return torch.nn.functional.normalize(torch.cat(features), dim=-1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Returns the unit-normalised features of texts, each cut to the tokenizer's maximum length."""
        features = []
        for at in range(0, len(texts), self.batch_size):
            tokens = self.tokenizer(list(texts[at : at + self.batch_size]), padding=True, truncation=True, return_tensors="pt")
            features.append(self.model.get_text_features(**tokens.to(self.device)).pooler_output.cpu())
        return torch.nn.functional.normalize(torch.cat(features), dim=-1)


def _squared(image: Image.Image) -> Image.Image:
    side = min(image.size)
    return image if image.width == image.height else image.resize((side, side), Image.Resampling.BICUBIC)
