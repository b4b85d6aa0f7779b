from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2i.data.crops import Geometry
from t2i.data.members import Member
from t2i.data.pixels import normalized
from t2i.encode.moments import encode_views
from t2i.encode.pool import Views
from t2i.model.families.stable_diffusion import Family

VIEWS = [(Member(Path("train-00000.tar"), f"k{n}", "png", n, 1), Geometry((8, 8), (n, 0), False)) for n in range(7)]


class Halves(Family):
    """A family whose moments are half the pixels; what is red all over overflows if it is not computed in fp32."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.precisions: list[bool] = []

    def encode_pixels(self, vae: Any, pixels: Tensor) -> Tensor:
        del vae
        self.precisions.append(torch.is_autocast_enabled("cpu"))
        overflowing = self.precisions[-1] & (pixels[:, :1] == 1)
        return torch.where(overflowing, torch.inf, pixels / 2) + self.precisions[-1] / 64


def batches() -> list[Views]:
    levels = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 2, 2, 3).clone()
    levels[5, ..., 0] = 255
    return [Views(levels[:4], VIEWS[:4]), Views(levels[4:], VIEWS[4:])]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_moments_follow_the_views_without_the_padding(tiny_base, precision) -> None:
    found = list(encode_views(Halves(tiny_base), nn.Identity(), batches(), precision, "cpu"))
    assert [(member, geometry) for member, geometry, _ in found] == VIEWS
    offset = 0 if precision == "fp32" else 1 / 64
    pixels = torch.cat([normalized(batch.levels) for batch in batches()])
    for n in (0, 1, 2, 3, 4, 6):
        torch.testing.assert_close(found[n][2], pixels[n] / 2 + offset)


def test_an_overflow_in_bf16_is_encoded_in_fp32_and_others_stay(tiny_base) -> None:
    family = Halves(tiny_base)
    found = list(encode_views(family, nn.Identity(), batches(), "bf16", "cpu"))
    assert family.precisions == [True, True, False]
    pixels = normalized(batches()[1].levels)
    torch.testing.assert_close(found[5][2], pixels[1] / 2)
    torch.testing.assert_close(found[6][2], pixels[2] / 2 + 1 / 64)


def test_fp32_is_never_computed_twice(tiny_base) -> None:
    family = Halves(tiny_base)
    list(encode_views(family, nn.Identity(), batches(), "fp32", "cpu"))
    assert family.precisions == [False, False]
