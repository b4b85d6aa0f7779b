"""Crops: cuts views out of images, as levels from 0 to 255. Imports no torch, so that a decoding process starts at once."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Size = tuple[int, int]
"""Height and width."""
Place = tuple[float, float]
"""Where a crop lies, down and across, as a fraction of the room that there is: (0.5, 0.5) is the centre."""


class Geometry(NamedTuple):
    """How a view was cut from its image, as SDXL's conditioning needs it."""

    original_size: Size
    """Size of the source image after EXIF rotation, in pixels."""
    crop: tuple[int, int]
    """Top and left of the crop in the resized image before the flip, in pixels."""
    flipped: bool


class Crop(NamedTuple):
    """One view of an image."""

    levels: NDArray[np.uint8]
    """[h, w, 3]: RGB."""
    geometry: Geometry


def covering(original_size: Size, size: Size) -> Size:
    """Returns the smallest size with the proportions of `original_size` that covers `size`: what an image is resized to."""
    scale = max(size[0] / original_size[0], size[1] / original_size[1])
    return max(size[0], round(original_size[0] * scale)), max(size[1], round(original_size[1] * scale))


def crops(image: Image.Image, size: Size, interpolation: Interpolation, views: Iterable[tuple[Place, bool]]) -> Iterator[Crop]:
    """Yields views of an image; views that follow each other at one place are cut once, and mirrored if they are flipped.

    Args:
        image: RGB.
        size: height and width of the views, in pixels.
        interpolation: Pillow's filter.
        views: place and flip of each view.
    """
    for place, group in groupby(views, key=lambda view: view[0]):
        levels, geometry = _cut(image, size, interpolation, place)
        for _, flipped in group:
            shown = np.ascontiguousarray(levels[:, ::-1]) if flipped else levels
            yield Crop(shown, geometry._replace(flipped=flipped))


def _cut(image: Image.Image, size: Size, interpolation: Interpolation, place: Place) -> Crop:
    """Returns a view of an image: resized so that it just covers `size`, then cropped.

    Only the cropped part is resized, so a very long image (1 x 5,000 pixels) does not take more memory.
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
    return Crop(np.asarray(cut), Geometry(original_size, (top, left), flipped=False))
