from PIL import Image

from t2i.evaluate.grid import draw_grid


def test_a_grid_shows_every_image_and_shortens_long_prompts(tmp_path) -> None:
    colours = ["#ff0000", "#00ff00", "#0000ff"]
    rows = [
        ("a prompt that is much too long for the width of its cell " * 3, [Image.new("RGB", (64, 64), c) for c in colours])
    ] * 5
    draw_grid(rows, ("base", "fine-tuned", "real"), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        counts = {colour: count for count, colour in grid.convert("RGB").getcolors(100_000)}
    areas = [counts[colour] for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    assert areas == [5 * 124 * 124] * 3
