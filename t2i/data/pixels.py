"""Pixels: converts views and images to tensors in [-1, 1], and back."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from t2i.data.crops import Geometry, Interpolation, Place, Size, crops


class View(NamedTuple):
    """One crop of an image."""

    pixels: Float[Tensor, "3 h w"]
    """In [-1, 1]."""
    geometry: Geometry


def size_of(resolution_px: int | Sequence[int]) -> Size:
    """Returns the size that `encode.images.resolution_px` states: the side of a square, or height and width."""
    height, width = (resolution_px, resolution_px) if isinstance(resolution_px, int) else resolution_px
    return height, width


def view(image: Image.Image, size: Size, interpolation: Interpolation, place: Place, flipped: bool) -> View:
    """Returns one view of an image; see `views_of`."""
    (made,) = views_of(image, size, interpolation, [(place, flipped)])
    return made


def views_of(
    image: Image.Image, size: Size, interpolation: Interpolation, views: Iterable[tuple[Place, bool]]
) -> Iterator[View]:
    """Yields views of an image: resized so that it just covers `size`, then cropped, then flipped.

    Args:
        image: RGB.
        size: height and width of the views, in pixels.
        interpolation: Pillow's filter.
        views: position of each crop, as fractions of the free room (down, across; (0.5, 0.5) is the centre), and whether it
            is mirrored left to right.
    """
    for levels, geometry in crops(image, size, interpolation, views):
        yield View(normalized(torch.from_numpy(levels.copy())[None])[0], geometry)


def normalized(levels: UInt8[Tensor, "b h w 3"], out: Float[Tensor, "b 3 h w"] | None = None) -> Float[Tensor, "b 3 h w"]:
    """Returns levels as pixels in [-1, 1], `levels / 127.5 - 1`, with the same bits on every device.

    Args:
        levels: from 0 to 255.
        out: the tensor to write to; None makes a new one.
    """
    planes = levels.permute(0, 3, 1, 2)
    pixels = torch.empty(planes.shape, device=levels.device) if out is None else out
    divisor = torch.full((), 127.5, device=levels.device)  # a tensor: CUDA multiplies by the rounded inverse of a number
    for image, its in zip(pixels, planes, strict=True):  # one by one, since an image fits in the processor's cache
        image.copy_(its.contiguous()).div_(divisor).sub_(1)
    return pixels


def to_pixels(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """Returns an RGB image as a tensor in [-1, 1]."""
    return normalized(torch.from_numpy(np.array(image))[None])[0]


def to_image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Returns pixels in [-1, 1] as an RGB image; the inverse of `to_pixels`."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
