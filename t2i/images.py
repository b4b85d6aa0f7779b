"""Images: encoded files made into pixels, as a person would see them."""

import io
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Geometry(NamedTuple):
    """Where a view lay: what SDXL is told, and anyone can check."""

    original_size: tuple[int, int]
    """Height and width of the image as it came, after EXIF's rotation, pixels."""
    crop: tuple[int, int]
    """Top and left of the crop in the resized image, pixels."""
    flipped: bool


class View(NamedTuple):
    """One crop of an image."""

    pixels: Float[Tensor, "3 px px"]
    """In [-1, 1]."""
    geometry: Geometry


def decode(content: bytes, background: str) -> Image.Image:
    """Returns an image as RGB, upright, its transparency laid on a ground.

    Args:
        content: the encoded file (PNG, JPEG, WebP, ...); of an animation, the first frame counts.
        background: the ground's colour, `#rrggbb`.

    Raises:
        ValueError: where it is no image that Pillow can read.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I") or image.mode == "F":
                image = _to_8_bit(image)
            if "A" in image.getbands() or "transparency" in image.info:
                layer = image.convert("RGBA")
                image = Image.new("RGBA", layer.size, (*ImageColor.getrgb(background)[:3], 255))
                image.alpha_composite(layer)
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image: {error}") from None


def view(
    image: Image.Image, resolution_px: int, interpolation: Interpolation, place: tuple[float, float], flipped: bool
) -> View:
    """Returns a square view of an image: its shorter side resized to resolution_px, then cropped, then flipped.

    Args:
        image: RGB.
        resolution_px: side of the square.
        interpolation: Pillow's filter.
        place: where to crop, as a fraction of the room there is, down and across; (0.5, 0.5) is the centre.
        flipped: whether to mirror left and right.
    """
    width, height = image.size
    scale = resolution_px / min(width, height)
    size = (max(resolution_px, round(width * scale)), max(resolution_px, round(height * scale)))
    resized = image if size == image.size else image.resize(size, Image.Resampling[interpolation.upper()])
    top, left = round(place[0] * (size[1] - resolution_px)), round(place[1] * (size[0] - resolution_px))
    square = resized.crop((left, top, left + resolution_px, top + resolution_px))
    square = ImageOps.mirror(square) if flipped else square
    return View(to_pixels(square), Geometry((height, width), (top, left), flipped))


def to_pixels(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """Returns an RGB image as a tensor in [-1, 1]."""
    array = np.asarray(image, dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def to_image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Returns pixels in [-1, 1] as an image: the inverse of to_pixels."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit and float images (floats in [0, 1]) to 8 bits; Pillow's own conversion clips them to white or black."""
    array = np.asarray(image, dtype=np.float64)
    return Image.fromarray((array * (255 if image.mode == "F" else 255 / 65535)).clip(0, 255).round().astype(np.uint8))
