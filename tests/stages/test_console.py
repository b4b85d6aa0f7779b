import pytest

from stages.console import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a plain [red] caf\u00e9, \U0001f600", "a plain [red] caf\u00e9, \U0001f600"),
        ("two\nlines\r\nand\u2028more", "two lines and more"),
        ("\x1b[31mred\a\0", r"\x1b[31mred\x07\x00"),
        ("no\udcff text", r"no\udcff text"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
    ],
)
def test_control_and_unprintable_characters_are_escaped(text, shown) -> None:
    assert printable(text) == shown
