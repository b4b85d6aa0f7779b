import re
from xml.etree import ElementTree

import pytest

from t2i.evaluate.charts import lines, path

ROWS = [{"step": n, "loss": 1 / n, "mse": 2 / n} for n in range(1, 9)]


def test_a_chart_is_deterministic_svg_in_the_colours_of_its_page() -> None:
    svg = lines(ROWS, "step", {"loss": "weighted", "mse": "unweighted"}, "loss")
    ElementTree.fromstring(svg)
    assert "currentColor" in svg
    assert "#0a0b0c" not in svg
    for text in ("weighted", "unweighted", "step"):
        assert f">{text}<" in svg
    assert svg == lines(ROWS, "step", {"loss": "weighted", "mse": "unweighted"}, "loss")


def test_points_of_a_path_are_labelled_with_their_values() -> None:
    svg = path(
        [{"x": 1.0, "y": 2.0, "scale": 1.5}, {"x": 2.0, "y": 3.0, "scale": 4.0}], {"x": "style", "y": "content"}, "scale"
    )
    ElementTree.fromstring(svg)
    assert ">1.5<" in svg
    assert ">4<" in svg


def span(svg: str) -> float:
    """Returns the distance between the lowest and the highest number that labels an axis; the points have no labels."""
    labels = [float(text.replace("\u2212", "-")) for text in re.findall(r">([\d.\u2212]+)</text>", svg)]
    return max(labels) - min(labels)


@pytest.mark.parametrize("values", [(0.5, 0.5, 0.5), (0.5, 0.50001, 0.5)], ids=["equal", "nearly equal"])
def test_axes_do_not_zoom_into_equal_values(values) -> None:
    rows = [{"x": value, "y": value, "scale": 0.5} for value in values]
    for svg in (path(rows, {"x": "style", "y": "content"}, "scale"), lines(rows, "scale", {"y": "loss"}, "loss")):
        assert 0.03 < span(svg) < 0.1


def test_an_axis_shows_values_that_are_all_zero() -> None:
    rows = [{"x": 0.0, "y": 0.0, "scale": 0.0}] * 2
    assert 0.5 < span(path(rows, {"x": "style", "y": "content"}, "scale")) < 2
