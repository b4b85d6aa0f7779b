import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from t2i.data.crops import crops
from tests.projects import ROOT


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 71, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(16, 16), (30, 30), (40, 24)])
def test_a_flipped_view_is_the_finished_one_mirrored(image, size) -> None:
    plain, mirrored = crops(image, size, "lanczos", [((0.3, 0.7), False), ((0.3, 0.7), True)])
    assert plain.levels.tobytes() != mirrored.levels.tobytes()
    assert mirrored.levels.tobytes() == ImageOps.mirror(Image.fromarray(plain.levels)).tobytes()
    assert mirrored.geometry == plain.geometry._replace(flipped=True)


def test_views_at_one_place_are_resized_once(image, monkeypatch) -> None:
    resized: list[object] = []
    resize = Image.Image.resize

    def counted(*given, **named) -> Image.Image:
        resized.append(given)
        return resize(*given, **named)

    monkeypatch.setattr(Image.Image, "resize", counted)
    places = [(0.5, 0.5), (0.5, 0.5), (0.0, 1.0), (0.0, 1.0)]
    made = list(crops(image, (16, 16), "bilinear", zip(places, [False, True] * 2, strict=True)))
    assert len(resized) == 2
    assert [seen.geometry.flipped for seen in made] == [False, True, False, True]


def test_decoding_and_cropping_need_no_torch() -> None:
    code = "import sys, t2i.data.crops, t2i.data.decoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
