from xml.etree import ElementTree

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
