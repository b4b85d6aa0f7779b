"""Pixels: makes views of images, and converts images to tensors and back."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Size = tuple[int, int]
"""Height and width."""


class Geometry(NamedTuple):
    """How a view was cut from its image, as SDXL's conditioning needs it."""

    original_size: Size
    """Size of the source image after EXIF rotation, in pixels."""
    crop: tuple[int, int]
    """Top and left of the crop in the resized image before the flip, in pixels."""
    flipped: bool


class View(NamedTuple):
    """One crop of an image."""

    pixels: Float[Tensor, "3 h w"]
    """In [-1, 1]."""
    geometry: Geometry


def size_of(resolution_px: int | Sequence[int]) -> Size:
    """Returns the size that `encode.images.resolution_px` states: the side of a square, or height and width."""
    height, width = (resolution_px, resolution_px) if isinstance(resolution_px, int) else resolution_px
    return height, width


def covering(original_size: Size, size: Size) -> Size:
    """Returns the smallest size with the proportions of `original_size` that covers `size`: what an image is resized to."""
    scale = max(size[0] / original_size[0], size[1] / original_size[1])
    return max(size[0], round(original_size[0] * scale)), max(size[1], round(original_size[1] * scale))


def view(image: Image.Image, size: Size, interpolation: Interpolation, place: tuple[float, float], flipped: bool) -> View:
    """Returns a view of an image: resized so that it just covers `size`, then cropped, then flipped.

    Only the cropped part is resized, so a very long image (1 x 5,000 pixels) does not take more memory.

    Args:
        image: RGB.
        size: height and width of the view, in pixels.
        interpolation: Pillow's filter.
        place: position of the crop, as fractions of the free room (down, across); (0.5, 0.5) is the centre.
        flipped: whether to mirror the view left to right.
    """
    (height, width), original_size = size, (image.height, image.width)
    resized = covering(original_size, size)
    top, left = round(place[0] * (resized[0] - height)), round(place[1] * (resized[1] - width))
    crop = (left, top, left + width, top + height)
    if resized == original_size:
        cut = image.crop(crop)
    else:
        across, down = image.width / resized[1], image.height / resized[0]
        box = (crop[0] * across, crop[1] * down, min(image.width, crop[2] * across), min(image.height, crop[3] * down))
        cut = image.resize((width, height), Image.Resampling[interpolation.upper()], box=box)
    cut = ImageOps.mirror(cut) if flipped else cut
    return View(to_pixels(cut), Geometry(original_size, (top, left), flipped))


def to_pixels(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """Returns an RGB image as a tensor in [-1, 1]."""
    array = np.asarray(image, dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def to_image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Returns pixels in [-1, 1] as an RGB image; the inverse of `to_pixels`."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
