"""The page, made by the stages on the tiny checkpoint, and opened in a real browser if one is installed."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from t2i.evaluate.page import embedded, figures

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHECK = """<script>
addEventListener("load", () => {
  const broken = [...document.images].filter(image => !image.complete || !image.naturalWidth).length;
  const root = document.documentElement;
  root.dataset.seen = `images ${document.images.length} broken ${broken} wide ${root.scrollWidth > innerWidth}`;
});
</script>"""


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]


@pytest.fixture
def page(project) -> Path:
    metadata = project.folder / "images" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("square", "<b>square</b>"))
    project.fetch_and_encode()
    project.train()
    project.evaluate()
    return project.folder / "data/reports/report.html"


def test_the_page_is_self_contained_and_escapes_captions(page) -> None:
    text, links = page.read_text(encoding="utf-8"), Links()
    links.feed(text)
    assert links.found
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert "url(http" not in text
    assert "<b>square" not in text
    assert "&lt;b&gt;square" in text
    for heading in (
        "Side by side",
        "Metrics",
        "Curves",
        "During training",
        "Prompts outside the dataset",
        "Nearest training images",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert "Lost detail" in text  # the tiny VAE is random
    assert "<code>base.vae</code>" in text
    provenance = text[text.index("Provenance") :]
    assert "<td>folder images, 17 training records, 7 held-out records, sha256 of its images: " in provenance
    assert "{&#39;" not in provenance[: provenance.index("<details>")]
    assert re.search(r'<div class="verdict [\w-]+"><strong>(Use|Look|Do not)', text)


def test_images_for_dvc_plots_are_written(page, project) -> None:
    assert {path.name for path in (project.folder / "data/pictures").iterdir()} == {"grid.png", "moments.png", "training.png"}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)")
@pytest.mark.parametrize("width_px", [1280, 390])
def test_a_browser_shows_every_image_without_an_error(page, tmp_path, width_px) -> None:
    checked = tmp_path / "checked.html"
    checked.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{CHECK}</body>"), encoding="utf-8")
    quiet = [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-gpu",
    ]
    command = [str(CHROMIUM), "--headless", "--no-sandbox", *quiet, f"--user-data-dir={tmp_path / 'profile'}"]
    options = [f"--window-size={width_px},900", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, *options, checked.as_uri()], capture_output=True, text=True, timeout=120)
    seen = re.search(r'data-seen="images (\d+) broken (\d+) wide (\w+)"', done.stdout)
    assert seen, done.stderr
    assert int(seen[1]) > 10
    assert seen[2] == "0"
    assert seen[3] == "false"
    assert "CONSOLE" not in done.stderr


def test_an_embedded_image_is_scaled_down_and_is_webp() -> None:
    uri = embedded(Image.new("RGB", (1000, 500), "#ff0000"), 100)
    head, _, content = uri.partition(",")
    assert head == "data:image/webp;base64"
    assert base64.b64decode(content)[8:12] == b"WEBP"


def test_each_metric_knows_which_direction_is_better() -> None:
    metrics = {"cmmd": 1.0, "cmmd_base": 2.0, "cmmd_floor": 0.1, "clip_score": 20.0, "clip_score_base": 25.0}
    rows = {row["name"]: row for row in figures(metrics, {"cmmd": [0.8, 1.2]})}
    assert rows["cmmd"]["better"]
    assert not rows["clip_score"]["better"]
    assert rows["cmmd"]["interval"] == "0.8 to 1.2"


def test_large_figures_have_commas_and_no_exponent() -> None:
    metrics = {"kid": 2734.6, "kid_base": 999.7, "kid_floor": -0.01234}
    (row,) = figures(metrics, {"kid": [-12345.0, 0.00002]})
    assert (row["model"], row["base"], row["real"], row["interval"]) == ("2,730", "1,000", "-0.0123", "-12,300 to 2e-05")
