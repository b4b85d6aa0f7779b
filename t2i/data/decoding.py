"""Decoding: decodes image files to sRGB, as a browser shows them."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

EXTENSIONS = {
    "AVIF": "avif",
    "BMP": "bmp",
    "GIF": "gif",
    "JPEG": "jpg",
    "JPEG2000": "jp2",
    "MPO": "jpg",
    "PNG": "png",
    "PPM": "ppm",
    "TIFF": "tif",
    "WEBP": "webp",
}
"""The file extension of each supported format, by Pillow's name for it.

Pillow knows more formats, but some of them start other programs (EPS), and most are rarely tested.
"""

MAX_PIXELS = 178_956_970
"""Largest number of pixels in an image that Pillow opens."""


def identify(content: bytes, max_pixels: int, min_side_px: int) -> str:
    """Returns the file extension for an image's format. Reads only the header and decodes no pixels.

    Args:
        content: the encoded file.
        max_pixels: largest number of pixels allowed.
        min_side_px: smallest width and height allowed.

    Raises:
        ValueError: if the file is empty, not an image, too large or too small; the message is `kind: detail`.
    """
    if not content:
        raise ValueError("empty image: no bytes")
    with _opened(content) as image:
        (width, height), form = image.size, str(image.format)
    if width * height > max_pixels:
        raise ValueError(f"image too large: {width} x {height}, wanted at most {max_pixels} pixels (`fetch.max_pixels`)")
    if min(width, height) < min_side_px:
        raise ValueError(
            f"image too small: {width} x {height}, wanted sides of at least {min_side_px} pixels (`fetch.min_side_px`)"
        )
    return EXTENSIONS[form]


def decode(content: bytes, background: str) -> Image.Image:
    """Decodes an image to RGB in sRGB, rotated as its EXIF data say, with transparent areas filled with a background colour.

    Args:
        content: the encoded file (PNG, JPEG, WebP, ...); the first frame of an animation is used.
        background: colour of the background, `#rrggbb`.

    Raises:
        ValueError: if Pillow cannot decode the whole image; the message is `kind: detail`.
    """
    with _opened(content) as opened:
        ImageOps.exif_transpose(opened, in_place=True)
        image = _to_8_bit(opened)
        if image.mode in ("P", "PA") or "transparency" in image.info:
            grey = {"1": "LA", "L": "LA"}
            image = image.convert(grey.get(image.mode, "RGBA") if image.has_transparency_data else "RGB")
        alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
        colours = _to_srgb(image if alpha is None else image.convert(image.mode[:-1]), opened.info.get("icc_profile"))
    if alpha is None:
        return colours
    ground = Image.new("RGB", colours.size, background)
    ground.paste(colours, mask=alpha)
    return ground


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Opens an image; turns every error that Pillow raises, here or in the block, into a ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which `fetch.max_pixels` limits, and about unused metadata
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                yield image
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"image too large: {error}") from None
    except UnidentifiedImageError:
        if like := _starts_like(content):
            raise ValueError(
                f"not a readable image: it starts like {like}, but is damaged or of a kind that Pillow cannot read"
            ) from None
        kinds = ", ".join(_formats())
        raise ValueError(f"not a readable image: it starts with {content[:16]!r}, wanted one of {kinds}") from None
    except Exception as error:  # Pillow's decoders raise many types: SyntaxError, struct.error, ValueError, ...
        raise ValueError(f"not a readable image: {error or type(error).__name__}") from None


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(
        name for name in EXTENSIONS if name in Image.OPEN
    )  # MPO is opened as JPEG; a build of Pillow may lack a library


def _starts_like(content: bytes) -> str | None:
    """Returns the supported format that a file starts like, or None."""
    accepts = ((name, Image.OPEN[name][1]) for name in _formats())
    return next((name for name, accept in accepts if accept and accept(content[:16]) is True), None)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit and float images (floats in [0, 1]) to 8 bits. Pillow's own conversion clips them to black or white."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    array = np.asarray(image)
    levels = np.nan_to_num(array) * 255 if image.mode == "F" else (array.clip(0, 65535).astype(np.uint32) + 128) // 257
    scaled = Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))
    if "transparency" in image.info:  # one grey level stands for transparency
        scaled.putalpha(Image.fromarray(np.where(array == image.info["transparency"], 0, 255).astype(np.uint8)))
    return scaled


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts an opaque image to RGB in sRGB, using its ICC profile if it has one."""
    image = image.convert("L") if image.mode == "1" else image
    transform = _transform(profile, image.mode) if profile and image.mode in ("L", "RGB", "CMYK") else None
    return image.convert("RGB") if transform is None else transform.apply(image)


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform from a profile to sRGB; None if the profile is sRGB, or does not fit the mode (as in browsers)."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if mode == "RGB" and _changes_nothing(transform) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Returns whether a transform is that of an sRGB profile, whatever its name: what it changes is rounding.

    Profiles that state sRGB by a short table differ by 1 of 255; a gamma of 2.2 differs by up to 9.
    """
    greys = np.repeat(np.arange(256)[:, None], 3, axis=1)
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), axis=-1).reshape(-1, 3)
    probe = np.concatenate([greys, colours]).astype(np.uint8)[None]
    shown = np.asarray(transform.apply(Image.fromarray(probe)), dtype=int)
    return bool(np.abs(shown - probe).max() <= 2)
