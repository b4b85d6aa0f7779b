"""Pixels: makes views of images, and converts images to tensors and back."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Geometry(NamedTuple):
    """How a view was cut from its image, as SDXL's conditioning needs it."""

    original_size: tuple[int, int]
    """Height and width of the source image after EXIF rotation, in pixels."""
    crop: tuple[int, int]
    """Top and left of the crop in the resized image, in pixels."""
    flipped: bool


class View(NamedTuple):
    """One crop of an image."""

    pixels: Float[Tensor, "3 px px"]
    """In [-1, 1]."""
    geometry: Geometry


def view(
    image: Image.Image, resolution_px: int, interpolation: Interpolation, place: tuple[float, float], flipped: bool
) -> View:
    """Returns a square view of an image: its shorter side resized to `resolution_px`, then cropped, then flipped.

    Only the cropped part is resized, so a very long image (1 x 5,000 pixels) does not take more memory.

    Args:
        image: RGB.
        resolution_px: side of the square, in pixels.
        interpolation: Pillow's filter.
        place: position of the crop, as fractions of the free room (down, across); (0.5, 0.5) is the centre.
        flipped: whether to mirror the view left to right.
    """
    width, height = image.size
    scale = resolution_px / min(width, height)
    size = (max(resolution_px, round(width * scale)), max(resolution_px, round(height * scale)))
    top, left = round(place[0] * (size[1] - resolution_px)), round(place[1] * (size[0] - resolution_px))
    crop = (left, top, left + resolution_px, top + resolution_px)
    if size == image.size:
        square = image.crop(crop)
    else:
        across, down = width / size[0], height / size[1]
        box = (crop[0] * across, crop[1] * down, min(width, crop[2] * across), min(height, crop[3] * down))
        square = image.resize((resolution_px, resolution_px), Image.Resampling[interpolation.upper()], box=box)
    square = ImageOps.mirror(square) if flipped else square
    return View(to_pixels(square), Geometry((height, width), (top, left), flipped))


def to_pixels(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """Returns an RGB image as a tensor in [-1, 1]."""
    array = np.asarray(image, dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def to_image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Returns pixels in [-1, 1] as an RGB image; the inverse of `to_pixels`."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
