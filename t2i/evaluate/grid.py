"""Grids: captioned images side by side in one PNG."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

_CELL_PX, _GAP_PX, _TEXT_PX = 128, 8, 20


def draw_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], headings: Sequence[str], out: Path, *, across: int = 4
) -> None:
    """Draws each prompt with its images side by side.

    Args:
        rows: prompts, each with one image per heading.
        headings: what the images of each prompt are, from left to right.
        out: the PNG file.
        across: the number of prompts per row of the grid.
    """
    width = len(headings) * _CELL_PX + 2 * _GAP_PX
    height = _CELL_PX + 2 * _TEXT_PX + _GAP_PX
    across = min(across, len(rows))
    down = -(-len(rows) // across)
    picture = Image.new("RGB", (across * width + _GAP_PX, down * height + _GAP_PX), "#ffffff")
    pen = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    for number, (prompt, images) in enumerate(rows):
        left, top = _GAP_PX + (number % across) * width, _GAP_PX + (number // across) * height
        pen.text((left, top), _fitted(prompt, large, width - 2 * _GAP_PX), fill="#111111", font=large)
        for column, (heading, image) in enumerate(zip(headings, images, strict=True)):
            at = left + column * _CELL_PX
            pen.text((at, top + _TEXT_PX), heading, fill="#777777", font=small)
            shown = ImageOps.contain(image, (_CELL_PX - 4, _CELL_PX - 4), Image.Resampling.LANCZOS)
            picture.paste(shown, (at, top + 2 * _TEXT_PX - 2))
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out, "PNG")


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "...") > width_px:
        text = text[:-1]
    return text + "..."
