import re

import pytest
from typer.testing import CliRunner

from benchmarks.scale import tables
from stages.tools import app
from t2i.tools.forecast import forecast
from t2i.tools.operations import Operations, operations
from tests.projects import ROOT


@pytest.mark.parametrize(
    ("base", "size_px", "counted"),
    [("sd15", 512, (1.117, 0.0133, 2.407)), ("sdxl", 1024, (4.879, 0.1112, 20.23))],
)
def test_operations_are_those_of_the_networks(base, size_px, counted) -> None:
    """As counted by torch on the networks themselves; a forward pass of SD 1.5 at 512 px has 0.803 TFLOP."""
    assert operations(base, size_px) == pytest.approx([1e12 * number for number in counted], rel=1e-3)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Operations(1_100_000_000_000, 100_000_000_000, 2_400_000_000_000)
    monkeypatch.setattr("t2i.tools.forecast.operations", lambda name, size_px: counted)


@pytest.mark.parametrize(
    ("base", "records", "least", "total"),
    [("sd15", 10_000_000, 1.838e12, "1.86 TB"), ("sdxl", 100_000_000, 58.0e12, "58.2 TB")],
)
def test_the_bytes_are_those_of_the_tensors_and_little_more(known, base, records, least, total) -> None:
    lines = dict(forecast(base, records, captions=1, parts=None, tflops=100.0))
    assert lines["disk, to encode"].startswith(f"{total} of ")
    assert float(total.removesuffix(" TB")) * 1e12 < 1.02 * least


def test_times_are_those_of_the_operations(known) -> None:
    lines = dict(forecast("sd15", 3_600_000, captions=2, parts=10, tflops=100.0))
    assert lines["time, encode"] == "about 13 h 00 min for a GPU at 100 TFLOP/s"  # 3.6 M x 1.3 TFLOP
    assert lines["time, train"] == "about 24 h 00 min per epoch for a GPU at 100 TFLOP/s: 41.7 images per second"
    assert (
        lines["caching"] == "pays if training has more than 1.08 epochs; without it, each epoch takes 50% longer"
    )  # 1.3 / 1.2 and 1.2 / 2.4
    assert lines["part, encode images"].startswith("at most 704 of 7,032 shards")


def test_a_forecast_needs_no_file(known, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["plan", "--base-size", "sd15", "--records", "1000", "--resolution-px", "256"])
    assert done.exit_code == 0, done.exception
    assert "1,000 for training, of one view at 256 px and 1 caption\n" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--captions", "2"], "--captions needs --records"),
        (["--base-size", "sd15", "--tflops", "50"], "--tflops need --records"),
        (["--records", "50", "--resolution-px", "512"], "--base-size"),
        (["--records", "50", "--base-size", "sd15", "--resolution-px", "500"], "multiple of 8"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(arguments, wanted) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert done.exit_code != 0
    assert wanted in re.sub(r"[\s│]+", " ", f"{done.output}{done.exception}")


def test_the_documentation_has_the_tables() -> None:
    text = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    assert [table in text for table in tables()] == [True, True]
