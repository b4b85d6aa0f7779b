import csv
import io

import pytest
from PIL import Image

from t2i.screening import Screen, check_captions, check_image


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
def test_any_text_is_a_caption(caption) -> None:
    check_captions((caption,))
    check_captions(("first", caption))


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        (None, "null caption"),
        (float("nan"), "caption that is no text: got nan"),
        (3, "caption that is no text: got 3"),
        ({"text": "x"}, "caption that is no text"),
        (["x"], "caption that is no text"),
        (b"x", "caption that is no text"),
        ("", "blank caption"),
        (" \t\n\u2003", "blank caption"),
        ("a\0b", r"caption with a NUL: got 'a\\x00b'"),
        ("a\ud800b", r"caption that is no Unicode: got 'a\\ud800b'"),
    ],
)
def test_what_is_no_text_is_no_caption_alone_or_among_others(caption, kind) -> None:
    for captions in ((caption,), ("good", caption)):
        with pytest.raises(ValueError, match=f"^{kind}"):
            check_captions(captions)


def test_no_caption_at_all_is_bad() -> None:
    with pytest.raises(ValueError, match=r"^no caption: an empty list"):
        check_captions(())


def test_an_image_is_decoded_to_its_end() -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    assert check_image(file.getvalue(), 64 * 64, 64) == "png"
    with pytest.raises(ValueError, match="not a readable image: image file is truncated"):
        check_image(file.getvalue()[:-100], 64 * 64, 64)


def test_a_bad_record_is_an_error_that_names_it_and_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"^line 7: null caption: wanted text; mend it, or set `fetch.on_bad: skip`"):
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


def test_as_many_bad_records_as_the_fraction_are_let_pass_and_one_more_is_an_error() -> None:
    screen = Screen("skip", 0.25)
    screen.looked_at = 8
    for n in range(2):
        screen.leave_out(f"line {n}", "null caption: wanted text")
    screen.check_fraction()
    screen.leave_out("line 2", "empty image: no bytes")
    said = (
        r"3 of 8 records .* \(2 null caption, 1 empty image\), wanted at most a share of 0.25: .*"
        r"`fetch.max_bad_fraction`; the first is line 0: null caption"
    )
    with pytest.raises(ValueError, match=said):
        screen.check_fraction()


def test_nothing_looked_at_is_nothing_bad() -> None:
    Screen("skip", 0.0).check_fraction()
