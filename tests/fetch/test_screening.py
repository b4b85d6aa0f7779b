import csv
import io
import re
import struct
import zlib
from functools import partial

import pytest
from PIL import Image

from t2i.fetch.bounds import Bounded
from t2i.fetch.screening import Screen, check_image, checked_captions, image_check
from tests.images import encoded, many_scans, png


@pytest.mark.parametrize(
    "caption",
    [
        "a",
        "a" * 10_000,
        "\U0001f600 grinning",
        "\u05e9\u05dc\u05d5\u05dd",
        "two\nlines",
        "[red] {blue} <b>",
        "a\u2028b",
        "NaN",
        "0",
    ],
)
def test_any_text_is_a_valid_caption(caption) -> None:
    checked_captions((caption,))
    checked_captions(("first", caption))


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        (None, "null caption"),
        (float("nan"), "caption is not text: got nan"),
        (3, "caption is not text: got 3"),
        ({"text": "x"}, "caption is not text"),
        (["x"], "caption is not text"),
        (b"x", "caption is not text"),
        ("", "blank caption"),
        (" \t\n\u2003", "blank caption"),
        ("a\0b", r"caption has a NUL character: got 'a\\x00b'"),
        ("a\ud800b", r"caption is not valid Unicode: got 'a\\ud800b'"),
    ],
)
def test_invalid_captions_are_rejected_alone_and_in_lists(caption, kind) -> None:
    for captions in ((caption,), ("good", caption)):
        with pytest.raises(ValueError, match=f"^{kind}"):
            checked_captions(captions)


def test_a_record_without_captions_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"^no caption: an empty list"):
        checked_captions(())


def test_check_image_decodes_the_whole_image() -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    assert check_image(file.getvalue(), 64 * 64, 64) == "png"
    with pytest.raises(ValueError, match="not a readable image: image file is truncated"):
        check_image(file.getvalue()[:-100], 64 * 64, 64)


def many_precincts(size: tuple[int, int]) -> bytes:
    """Returns a JPEG 2000 file whose header divides it into squares of 2 x 2 pixels; the decoder allocates memory for each."""
    image = bytearray(encoded(Image.new("RGB", size), "JPEG2000", precinct_size=(256, 256), codeblock_size=(64, 64)))
    coding_style = image.index(b"\xff\x52")
    (length,) = struct.unpack(">H", image[coding_style + 2 : coding_style + 4])
    for at in range(coding_style + 14, coding_style + 2 + length):
        image[at] = 0x11
    return bytes(image)


def test_a_slow_image_is_bad_and_the_next_is_checked() -> None:
    slow, good = many_scans((2000, 2000), 20_000), encoded(Image.new("RGB", (16, 16)))
    assert len(slow) < 400_000
    with image_check(4_000_000, 16, max_decode_seconds=0.3) as check:
        with pytest.raises(ValueError, match=r"^image too slow to decode: .*0.3 seconds .*\(`fetch.max_decode_seconds`\)"):
            check(slow)
        assert check(good) == "png"
        assert check(many_scans((64, 64), 20)) == "jpg"


def test_a_greedy_image_is_bad_and_the_next_is_checked() -> None:
    greedy, good = many_precincts((1500, 1500)), encoded(Image.new("RGB", (16, 16)), "JPEG2000")
    assert len(greedy) < 20_000
    with image_check(1500 * 1500, 16, max_decode_seconds=30.0) as check:  # 0.6 GB; the image needs twice as much
        with pytest.raises(ValueError, match=r"^(image too large|not a readable image): "):
            check(greedy)
        assert check(good) == "jp2"


INFLATING = zlib.compress(bytes(80_000_000))
PIXELS, END = (b"IDAT", zlib.compress(bytes(16 * (1 + 3 * 16)))), (b"IEND", b"")


def frames(form: str, count: int) -> bytes:
    images = [Image.new("RGB", (16, 16), (n % 256, n // 256, 0)) for n in range(count)]
    return encoded(images[0], form, save_all=True, append_images=images[1:])


def tiff(strips: int, height: int) -> bytes:
    """Returns a grey TIFF with the given number of strips, whose directory links to itself as the next one."""
    tags = [(256, 16), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 8)]
    entries = [struct.pack("<HHII", tag, 4, strips if tag in (273, 279) else 1, value) for tag, value in tags]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + struct.pack("<I", 8) + bytes(1000)


@pytest.mark.parametrize(
    ("content", "result"),
    [
        (b"", "empty image"),
        (b"<html></html>", "not a readable image"),
        (png((13_400, 13_400), (b"IDAT", INFLATING), END), "image too large"),
        (png((65_000, 65_000), (b"IDAT", INFLATING), END), "image too large"),
        (png((16, 16), (b"zTXt", b"a\0\0" + INFLATING), PIXELS, END), "not a readable image"),
        (png((16, 16), (b"iTXt", b"a\0\1\0\0\0" + INFLATING), PIXELS, END), "not a readable image"),
        (png((16, 16), *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6)))] * 90, PIXELS, END), "not a readable image"),
        (png((16, 16), (b"iCCP", b"a\0\0" + INFLATING), PIXELS, END), "not a readable image"),
        (png((16, 16), (b"IDAT", INFLATING), END), "png"),
        (png((16, 16), (b"acTL", struct.pack(">II", 2**31 - 1, 0)), PIXELS, END), "png"),
        (frames("PNG", 500), "png"),
        (frames("GIF", 1000), "gif"),
        (frames("WEBP", 500), "webp"),
        (frames("TIFF", 1000), "tif"),
        (tiff(2**31 - 1, 16), "not a readable image"),
        (tiff(16, 2**31 - 1), "image too large"),
        (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + bytes(20), "image too large"),
    ],
    ids=[
        "empty",
        "HTML",
        "180 MP",
        "4 GP",
        "zTXt",
        "iTXt",
        "90 zTXt",
        "ICC",
        "too many pixels",
        "missing frames",
        "APNG",
        "GIF",
        "WebP",
        "TIFF",
        "missing strips",
        "missing rows",
        "GIF's canvas",
    ],
)
def test_bombs_need_at_most_100_megabytes_and_2_seconds(content, result) -> None:
    check = partial(check_image, max_pixels=64_000_000, min_side_px=16)
    with Bounded(check, 2.0, 100_000_000) as bounded:
        if len(result) <= 4:
            assert bounded(content) == result
        else:
            with pytest.raises(ValueError, match=f"^{re.escape(result)}: "):
                bounded(content)


def test_a_bad_record_error_names_it_and_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"^line 7: null caption: wanted text; .*`fetch.on_bad: skip`"):
        Screen("error", 1.0).leave_out("line 7", "null caption: wanted text")


def test_bad_records_are_counted_by_kind_and_listed(tmp_path) -> None:
    screen = Screen("skip", 1.0)
    for place, reason in (("a, 1", "blank caption: got ''"), ("b\udcff", "null caption: x"), ("c", 'blank caption: got "\n"')):
        screen.leave_out(place, reason)
    assert screen.kinds() == {"blank caption": 2, "null caption": 1}
    screen.write(tmp_path / "skipped.csv")
    rows = list(csv.reader((tmp_path / "skipped.csv").open(encoding="utf-8", newline="")))
    assert rows == [
        ["record", "reason"],
        ["a, 1", "blank caption: got ''"],
        ["b\\udcff", "null caption: x"],
        ["c", 'blank caption: got " "'],
    ]


def test_max_bad_fraction_is_inclusive() -> None:
    screen = Screen("skip", 0.25)
    screen.checked = 8
    for n in range(2):
        screen.leave_out(f"line {n}", "null caption: wanted text")
    screen.check_fraction()
    screen.leave_out("line 2", "empty image: no bytes")
    said = r"3 of 8 .* \(2 null caption, 1 empty image\), .* 0.25: .*`fetch.max_bad_fraction`; .*line 0: null caption"
    with pytest.raises(ValueError, match=said):
        screen.check_fraction()


def test_no_records_are_no_error() -> None:
    Screen("skip", 0.0).check_fraction()
