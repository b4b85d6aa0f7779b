import io

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.images import decode, to_image, to_pixels, view


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_transparency_is_laid_on_the_background() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    shown = decode(encoded(image), "#00ff00")
    assert (shown.getpixel((0, 0)), shown.getpixel((1, 0))) == ((255, 0, 0), (0, 255, 0))


def test_sixteen_bits_are_scaled() -> None:
    image = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert [decode(encoded(image), "#ffffff").getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(image, "JPEG", exif=exif), "#ffffff").size == (2, 4)


@pytest.mark.parametrize("content", [b"", b"<html></html>", encoded(Image.new("RGB", (64, 64)))[:60]])
def test_what_is_no_image_is_refused(content) -> None:
    with pytest.raises(ValueError, match="not a readable image"):
        decode(content, "#ffffff")


def test_pixels_are_in_minus_one_to_one_and_come_back() -> None:
    image = Image.fromarray(np.arange(4 * 64, dtype=np.uint8).reshape(8, 8, 4)[..., :3].copy())
    pixels = to_pixels(image)
    assert to_pixels(Image.new("RGB", (1, 1), "#000000")).unique().tolist() == [-1]
    assert to_pixels(Image.new("RGB", (1, 1), "#ffffff")).unique().tolist() == [1]
    assert to_image(pixels).tobytes() == image.tobytes()


def test_a_view_is_cropped_where_it_says() -> None:
    image = Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3))
    seen = view(image, 8, "lanczos", (0.5, 1.0), False)
    assert seen.geometry == ((8, 12), (0, 4), False)
    torch.testing.assert_close(seen.pixels, to_pixels(image)[:, :, 4:])
    assert torch.equal(view(image, 8, "lanczos", (0.5, 1.0), True).pixels, seen.pixels.flip(-1))


def test_the_shorter_side_is_resized_to_the_resolution() -> None:
    assert view(Image.new("RGB", (200, 100)), 16, "bilinear", (0.5, 0.5), False).pixels.shape == (3, 16, 16)
    assert view(Image.new("RGB", (5, 1)), 16, "bilinear", (0.5, 0.5), False).geometry.crop == (0, 32)
