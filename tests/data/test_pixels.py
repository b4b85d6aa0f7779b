import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, _imaging

from t2i.data.decoding import decode, identify
from t2i.data.pixels import normalized, to_image, to_pixels, view
from tests.images import P3_PRIMARIES, encoded, png, profile

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def row(*pixels, mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def shown(content: bytes, background: str = "#00ff00") -> list[tuple[int, ...]]:
    image = decode(content, background)
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.array(image)[0].tolist()]


def swapped_profile() -> bytes:
    """Returns the sRGB profile with the entries for red and green swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ", 128) + 4, profile.index(b"gXYZ", 128) + 4
    profile[red : red + 8], profile[green : green + 8] = profile[green : green + 8], profile[red : red + 8]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (encoded(row((*RED, 255), (*BLACK, 0), mode="RGBA")), [RED, GREEN]),
        (encoded(row((0, 255), (0, 0), (255, 255), mode="LA")), [BLACK, GREEN, WHITE]),
        (encoded(row(0, 200, mode="L"), transparency=200), [BLACK, GREEN]),
        (encoded(row(RED, BLUE), transparency=RED), [GREEN, BLUE]),
        (encoded(row(0, 255, mode="1"), transparency=255), [BLACK, GREEN]),
        (encoded(row((*RED, 255), (*BLUE, 0), mode="RGBA"), "WEBP", lossless=True), [RED, GREEN]),
        (encoded(row((*RED, 255), (*BLUE, 0), mode="RGBA").quantize(), transparency=bytes([255, 0])), None),
    ],
    ids=["RGBA", "LA", "grey level", "colour", "1-bit", "WebP", "palette"],
)
def test_transparent_pixels_show_the_background(content, pixels) -> None:
    if pixels is None:  # Pillow chooses the order of the palette: one of the colours is shown, the other is transparent
        assert GREEN in shown(content)
        assert len(set(shown(content))) == 2
    else:
        assert shown(content) == pixels


def test_half_transparent_pixels_blend_with_the_background() -> None:
    assert shown(encoded(row((255, 0, 0, 51), mode="RGBA")), "#0000ff") == [(51, 0, 204)]


def test_a_palette_without_transparency_keeps_its_colours() -> None:
    assert shown(encoded(row(RED, GREEN, BLUE).quantize(3))) == [RED, GREEN, BLUE]


def test_one_bit_is_black_and_white() -> None:
    assert shown(encoded(row(0, 255, mode="1"))) == [BLACK, WHITE]
    assert shown(encoded(row(0, 255, mode="1"), "TIFF")) == [BLACK, WHITE]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(form) -> None:
    image = Image.fromarray(np.array([[0, 257, 32768, 65278, 65535]], dtype=np.uint16))
    assert [pixel[0] for pixel in shown(encoded(image, form))] == [0, 1, 128, 254, 255]


def test_thirty_two_bit_integers_are_scaled_like_sixteen() -> None:
    image = Image.fromarray(np.array([[-5, 0, 32768, 65535, 2**30]], dtype=np.int32))
    assert [pixel[0] for pixel in shown(encoded(image, "TIFF"))] == [0, 0, 128, 255, 255]


def test_a_transparent_16_bit_level_shows_the_background() -> None:
    image = Image.fromarray(np.array([[0, 51400, 51401]], dtype=np.uint16))
    assert shown(encoded(image, transparency=51400)) == [BLACK, GREEN, (200, 200, 200)]


def test_floats_are_scaled_from_one_and_nan_is_black() -> None:
    image = Image.fromarray(np.array([[0, 0.5, 1, 7, np.nan]], dtype=np.float32))
    assert [pixel[0] for pixel in shown(encoded(image, "TIFF"))] == [0, 128, 255, 255, 0]


def test_cmyk_inks_darken() -> None:
    image = row((0, 0, 0, 0), (0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 255), mode="CMYK")
    assert shown(encoded(image, "TIFF")) == [WHITE, RED, GREEN, BLUE, BLACK]
    jpeg = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(np.array(shown(jpeg)) - RED).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_icc_profile_is_applied(form) -> None:
    image = Image.new("RGB", (16, 16), RED)
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    plain, profiled = (
        np.array(decode(encoded(image, form, **options, **kind), "#ffffff"))
        for kind in ({}, {"icc_profile": swapped_profile()})
    )
    assert np.abs(plain.astype(int) - RED).max() <= 3
    assert np.abs(profiled.astype(int) - GREEN).max() <= 3


def test_icc_profiles_apply_with_transparency_and_palettes() -> None:
    layered = row((*RED, 255), (*BLUE, 0), mode="RGBA")
    assert shown(encoded(layered, icc_profile=swapped_profile()), "#0000ff") == [GREEN, BLUE]
    assert shown(encoded(row(RED, BLUE).quantize(2), icc_profile=swapped_profile())) == [GREEN, BLUE]


@pytest.mark.parametrize(
    "profile",
    [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"no profile" * 20],
    ids=["sRGB", "invalid"],
)
def test_an_srgb_or_invalid_icc_profile_changes_nothing(profile) -> None:
    image = Image.fromarray(np.arange(3 * 256, dtype=np.uint8).reshape(16, 16, 3))
    assert decode(encoded(image, icc_profile=profile), "#ffffff").tobytes() == image.tobytes()


def linear(level: float) -> float:
    """Returns the linear light of a level of sRGB, both in [0, 1] (IEC 61966-2-1)."""
    return level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4


@pytest.mark.parametrize("name", ["sRGB", "c2", "", "Bildschirm \u00e4"])
@pytest.mark.parametrize("levels", [26, 1024])
def test_an_srgb_profile_of_any_name_changes_nothing(name, levels) -> None:
    image = Image.fromarray(np.arange(3 * 256, dtype=np.uint8).reshape(16, 16, 3))
    curve = [linear(level / (levels - 1)) for level in range(levels)]
    assert decode(encoded(image, icc_profile=profile(name, curve)), "#ffffff").tobytes() == image.tobytes()


@pytest.mark.parametrize("name", ["GIMP built-in Linear sRGB", "Linear RGB", "sRGB"])
@pytest.mark.parametrize(("gamma", "stored"), [(1.0, 55), (1.8, 55), (2.2, 10)])
def test_a_profile_is_what_it_does_not_its_name(name, gamma, stored) -> None:
    (pixel,) = shown(encoded(row((stored,) * 3), icc_profile=profile(name, gamma)))
    wanted = min(range(256), key=lambda level: abs(linear(level / 255) - (stored / 255) ** gamma))
    assert abs(wanted - stored) > 2
    assert np.abs(np.array(pixel) - wanted).max() <= 1


def test_wide_primaries_with_the_curve_of_srgb_are_converted() -> None:
    curve = [linear(level / 1023) for level in range(1024)]
    content = encoded(row((128, 128, 128), (200, 60, 60)), icc_profile=profile("sRGB", curve, P3_PRIMARIES))
    grey, red = shown(content)
    assert np.abs(np.array(grey) - 128).max() <= 1
    assert red[0] > 210
    assert red[1] < 55


@pytest.mark.parametrize("form", ["TIFF", "PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_damaged_image_is_said_to_start_like_its_format(form) -> None:
    start = encoded(Image.new("RGB", (32, 32)), form)[:40]
    with pytest.raises(ValueError, match=r"^not a readable image: (?!.*wanted one of)"):
        decode(start, "#ffffff")


def test_a_tiff_of_an_unknown_kind_is_not_told_to_be_a_tiff() -> None:
    fields = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 24), (262, 3, 1, 2), (277, 3, 1, 3), (273, 4, 1, 8), (279, 4, 1, 9)]
    tiff = b"II*\0" + struct.pack("<IH", 8, len(fields)) + b"".join(struct.pack("<HHII", *row) for row in fields) + bytes(200)
    with pytest.raises(ValueError, match=r"^not a readable image: it starts like TIFF, but"):
        decode(tiff, "#ffffff")


def test_a_colour_profile_on_a_grey_image_is_ignored() -> None:
    assert shown(encoded(row(7, 200, mode="L"), icc_profile=swapped_profile())) == [(7, 7, 7), (200, 200, 200)]


UPRIGHT = [[RED, GREEN, BLUE], [WHITE, BLACK, RED]]
AS_STORED = {  # the stored image that each EXIF orientation turns into UPRIGHT
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_exif_rotation_is_applied(orientation, form) -> None:
    stored = Image.fromarray(np.ascontiguousarray(AS_STORED[orientation](np.array(UPRIGHT, dtype=np.uint8))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array(decode(encoded(stored, form, exif=exif), "#ffffff")).tolist() == np.array(UPRIGHT).tolist()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_used(form) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 2  # type: ignore[attr-defined]
    assert set(shown(content)) == {RED}


@pytest.mark.parametrize(
    ("form", "extension"),
    [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tif"), ("BMP", "bmp"), ("PPM", "ppm")],
)
def test_the_content_decides_the_extension(form, extension) -> None:
    assert identify(encoded(Image.new("RGB", (16, 16)), form), 256, 16) == extension


@pytest.mark.parametrize(
    "content",
    [
        b"<html></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        png((9, 9), (b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))),
    ],
    ids=["HTML", "SVG", "EPS", "zTXt bomb"],
)
def test_files_that_are_not_images_are_rejected_by_header(content) -> None:
    for read in (lambda: decode(content, "#ffffff"), lambda: identify(content, 10**6, 1)):
        with pytest.raises(ValueError, match=r"^not a readable image: ") as caught:
            read()
        assert "0x" not in str(caught.value)  # an address would differ from run to run


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_a_truncated_image_is_rejected(form) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"^not a readable image: "):
        decode(encoded(noise, form)[: -1000 if form != "JPEG" else -500], "#ffffff")


def test_an_empty_file_is_reported_as_empty() -> None:
    with pytest.raises(ValueError, match=r"^empty image: no bytes"):
        identify(b"", 100, 1)


@pytest.mark.parametrize("size", [(9_500, 9_500), (13_400, 13_400), (65_000, 65_000)], ids=["90 MP", "180 MP", "4 GP"])
def test_a_decompression_bomb_is_rejected_by_header(size, recwarn) -> None:
    bomb = png(size, (b"IDAT", zlib.compress(bytes(10**7))), (b"IEND", b""))
    assert len(bomb) < 20_000
    made = _imaging.get_stats()["new_count"]
    with pytest.raises(ValueError, match=r"^image too large: "):
        identify(bomb, 64_000_000, 1)
    assert _imaging.get_stats()["new_count"] == made  # Pillow has allocated no image
    assert not recwarn.list


def test_size_limits_are_inclusive() -> None:
    content = encoded(Image.new("RGB", (20, 10)))
    assert identify(content, 200, 10) == "png"
    with pytest.raises(ValueError, match=r"image too large: 20 x 10, .*199 pixels \(`fetch.max_pixels`\)"):
        identify(content, 199, 10)
    with pytest.raises(ValueError, match=r"image too small: 20 x 10, .*11 pixels \(`fetch.min_side_px`\)"):
        identify(content, 200, 11)


def test_pixels_are_in_minus_one_to_one_and_invertible() -> None:
    image = Image.fromarray(np.arange(4 * 64, dtype=np.uint8).reshape(8, 8, 4)[..., :3].copy())
    pixels = to_pixels(image)
    assert to_pixels(Image.new("RGB", (1, 1), "#000000")).unique().tolist() == [-1]
    assert to_pixels(Image.new("RGB", (1, 1), "#ffffff")).unique().tolist() == [1]
    assert to_image(pixels).tobytes() == image.tobytes()


def test_every_level_is_the_nearest_float_of_its_formula() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 2, 256, 3)
    wanted = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    pixels = normalized(levels)
    assert pixels.is_contiguous()
    assert all(line.tolist() == wanted.tolist() for line in pixels.reshape(-1, 256))


def test_a_view_is_cropped_at_its_stated_place() -> None:
    image = Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3))
    seen = view(image, (8, 8), "lanczos", (0.5, 1.0), False)
    assert seen.geometry == ((8, 12), (0, 4), False)
    torch.testing.assert_close(seen.pixels, to_pixels(image)[:, :, 4:])
    assert torch.equal(view(image, (8, 8), "lanczos", (0.5, 1.0), True).pixels, seen.pixels.flip(-1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("place", [(0.5, 0.5), (0.0, 1.0), (0.3, 0.8)])
@pytest.mark.parametrize(("size", "resized"), [((48, 48), (48, 112)), ((48, 80), (48, 112)), ((36, 96), (41, 96))])
def test_a_view_equals_a_crop_of_the_resized_image(interpolation, place, size, resized) -> None:
    down, across = np.mgrid[0:30, 0:70]
    image = Image.fromarray(np.stack([down * 8, across * 3, down + across], axis=-1).astype(np.uint8))
    seen = view(image, size, interpolation, place, False)
    top, left = seen.geometry.crop
    whole = image.resize(resized[::-1], Image.Resampling[interpolation.upper()])
    whole = whole.crop((left, top, left + size[1], top + size[0]))
    torch.testing.assert_close(seen.pixels, to_pixels(whole), atol=1.5 / 127.5, rtol=0)  # one level of 255


def test_the_shorter_side_is_resized_to_the_resolution() -> None:
    assert view(Image.new("RGB", (200, 100)), (16, 16), "bilinear", (0.5, 0.5), False).pixels.shape == (3, 16, 16)
    assert view(Image.new("RGB", (5, 1)), (16, 16), "bilinear", (0.5, 0.5), False).geometry.crop == (0, 32)


def test_one_pixel_fills_a_view() -> None:
    seen = view(decode(encoded(row(RED)), "#ffffff"), (16, 16), "lanczos", (0.5, 0.5), False)
    assert seen.geometry == ((1, 1), (0, 0), False)
    assert torch.equal(seen.pixels, torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 16, 16))


def test_only_the_cropped_part_of_a_long_image_is_resized() -> None:
    line = Image.new("RGB", (1, 500_000), RED)  # resized to a width of 512, it would take 400 GB
    line.paste(BLUE, (0, 250_000, 1, 500_000))
    ends = [
        view(line, (512, 512), "lanczos", (down, 0.5), False).pixels.mean(dim=(1, 2)).round().tolist() for down in (0.0, 1.0)
    ]
    assert ends == [[1, -1, -1], [-1, -1, 1]]
