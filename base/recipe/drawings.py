"""Draws each emoji as layers, so that the outlines and grounds of a whole batch can be recoloured at once.

A drawing is linear in the colour of its outlines and of its ground: `pixels = fills + outline * colour + (1 - alpha) * ground`,
with the fills premultiplied. Two renderings, with black and with white outlines, give all three layers.
"""

import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i.data.chance import hash_fraction
from t2i.fetch.sources.openmoji import STYLES, UNSEEN_FRACTION, draw, names

COLOURS = {
    "white": "ffffff",
    "light gray": "c8c8c8",
    "gray": "808080",
    "dark gray": "404040",
    "black": "000000",
    "red": "e02020",
    "dark red": "801010",
    "orange": "f08020",
    "brown": "704020",
    "yellow": "f0e020",
    "light yellow": "f8f0a0",
    "green": "20b020",
    "dark green": "105010",
    "light green": "a0f0a0",
    "cyan": "20d0d0",
    "blue": "2040e0",
    "dark blue": "101850",
    "light blue": "a0c8f8",
    "purple": "9030d0",
    "dark purple": "401060",
    "pink": "f080c0",
}
"""Words for colours and their `rrggbb`: a caption may use them for outlines and ground."""


class Layers(NamedTuple):
    """The uint8 layers of n drawings of size x size pixels."""

    fills: Tensor
    """[n, 3, size, size], premultiplied by alpha."""
    outline: Tensor
    """[n, 1, size, size]: weight of the outlines' colour in each pixel."""
    alpha: Tensor
    """[n, 1, size, size]: opacity."""


def codes(*, unseen: bool) -> list[str]:
    """Returns the codes that the base is trained on, or those held out of it."""
    return [code for code in names() if (hash_fraction(code) < UNSEEN_FRACTION) == unseen]


def draw_layers(codes: list[str], size_px: int) -> Layers:
    """Returns the layers of the emoji with these codes."""
    black, white = (
        np.stack([_premultiplied(draw(code, size_px, colour, None)) for code in codes]) for colour in ("#000000", "#ffffff")
    )
    outline = (white[..., :3] - black[..., :3]).mean(axis=-1, keepdims=True).clip(0, 1)
    return Layers(
        *(
            torch.from_numpy((255 * part).round().astype(np.uint8)).permute(0, 3, 1, 2)
            for part in (black[..., :3], outline, black[..., 3:])
        )
    )


def in_style(layers: Layers, style: str) -> Tensor:
    """Returns pixels [n, 3, size, size] in [-1, 1] in one of the styles of the source `openmoji`."""
    colours = (torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for colour in STYLES[style])
    return 2 * _composite(layers, *(colour.view(1, 3, 1, 1) for colour in colours)) - 1


class Coloured(NamedTuple):
    """A batch drawn in random colours, and these colours."""

    pixels: Tensor
    """[n, 3, size, size] in [-1, 1]."""
    outline: Tensor
    """[n, 3] in [0, 1]."""
    ground: Tensor
    """[n, 3] in [0, 1]."""


def in_any_style(layers: Layers, generator: torch.Generator) -> Coloured:
    """Draws three quarters of the emoji recoloured and the rest plain; half of all then pass through a random colour map."""
    n = len(layers.fills)
    uniform = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    recoloured = uniform(n, 1, 1, 1) < 0.75
    outline = torch.where(recoloured, uniform(n, 3, 1, 1), torch.zeros(3, 1, 1))
    ground = torch.where(recoloured, uniform(n, 3, 1, 1), torch.ones(3, 1, 1))
    # The random map mixes the channels, inverts some of them, and raises them to a power.
    mixing = torch.softmax(4 * torch.randn(n, 3, 3, generator=generator), dim=-1)
    inverted = uniform(n, 3, 1, 1) < 0.3
    power = torch.exp(0.5 * torch.randn(n, 3, 1, 1, generator=generator))
    mapped = uniform(n, 1, 1, 1) < 0.5

    def through_map(colours: Tensor) -> Tensor:
        mixed = torch.einsum("nij,njhw->nihw", mixing, colours)
        return torch.where(mapped, torch.where(inverted, 1 - mixed, mixed).clamp(1e-4, 1) ** power, colours)

    pixels = 2 * through_map(_composite(layers, outline, ground)) - 1
    return Coloured(pixels, through_map(outline).flatten(1), through_map(ground).flatten(1))


def colour_names(colours: Tensor) -> list[str]:
    """Returns the nearest word of COLOURS for each of the colours [n, 3] in [0, 1]."""
    words = list(COLOURS)
    palette = torch.tensor([[int(COLOURS[word][i : i + 2], 16) / 255 for i in (0, 2, 4)] for word in words])
    return [words[at] for at in torch.cdist(colours, palette).argmin(dim=1).tolist()]


def shifted(layers: Layers, most_px: int, generator: torch.Generator) -> Layers:
    """Returns the layers, all shifted by the same random offset of at most most_px pixels (the margins are transparent)."""
    shifts = torch.randint(-most_px, most_px + 1, (2,), generator=generator).tolist()
    return Layers(*(layer.roll(shifts, dims=(2, 3)) for layer in layers))


def _composite(layers: Layers, outline: Tensor, ground: Tensor) -> Tensor:
    fills, strokes, alpha = (layer.float() / 255 for layer in layers)
    return (fills + strokes * outline + (1 - alpha) * ground).clamp(0, 1)


def _premultiplied(png: bytes) -> np.ndarray:
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=np.float32) / 255
    return np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=-1)
