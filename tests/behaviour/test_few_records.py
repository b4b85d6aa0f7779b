"""Very small datasets: training runs on them, or a stage refuses them with an error; none hangs or trains for 0 steps."""

from pathlib import Path

import pytest

from stages import evaluate, fetch
from t2i.data.chance import hash_fraction
from t2i.data.records import SPLITS
from t2i.fetch.source import content_key
from tests.projects import Project

pytestmark = pytest.mark.slow


def keep(project: Project, train: int, heldout: int) -> None:
    """Leaves the given number of records in each split, by choosing the matching held-out fraction."""
    images = project.folder / "images"
    metadata = images / "metadata.jsonl"
    metadata.write_text("".join(metadata.read_text().splitlines(keepends=True)[: train + heldout]))
    keys = [content_key((images / f"{n:04d}.png").read_bytes()) for n in range(train + heldout)]
    chances = sorted(hash_fraction(f"split:{key}") for key in keys)
    project.params["fetch"]["heldout_fraction"] = (chances[heldout - 1] + chances[heldout]) / 2
    project.write()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("length", "steps"), [({"steps": 3}, 3), ({"steps": None, "epochs": 1}, 1), ({"steps": None, "epochs": 9}, 3)]
)
def test_one_training_record_fills_every_batch(project, length, steps) -> None:
    keep(project, train=1, heldout=1)
    project.params["train"] |= {"warmup_steps": 0, **length}
    project.write()
    project.fetch_and_encode()
    project.train()
    assert project.json("data/reports/fetch-dataset/metrics.json")["records"] == {"train": 1, "heldout": 1}
    assert project.json("data/reports/train/metrics.json")["steps"] == steps
    with pytest.raises(ValueError, match=r"1 heldout record.*wanted 2 or more.*`fetch.max_heldout_records`"):
        evaluate.base()


def test_two_records_fill_a_larger_batch_and_are_evaluated(project) -> None:
    keep(project, train=2, heldout=2)
    project.params["train"] |= {"batch_size": 16, "steps": 2}
    project.fetch_and_encode()
    project.train()
    assert project.json("data/reports/train/metrics.json")["steps"] == 2
    project.evaluate()
    assert project.json("data/reports/evaluate/metrics.json")["prompts"] == 2


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "metadata.jsonl: empty"), (1, r"^`fetch`: .* \(train 1, held out 0\): .*`fetch.heldout_fraction`")],
)
def test_zero_records_and_one_record_are_refused(project, count, said) -> None:
    metadata = project.folder / "images/metadata.jsonl"
    metadata.write_text("".join(metadata.read_text().splitlines(keepends=True)[:count]))
    with pytest.raises(ValueError, match=said):
        fetch.dataset()
    assert not list((project.folder / "data").glob("*"))


def test_identical_images_count_as_one_record(project) -> None:
    for image in (project.folder / "images").glob("*.png"):
        image.write_bytes((project.folder / "images/0000.png").read_bytes())
    with pytest.raises(ValueError, match=r"'heldout' .*\(train 1, held out 0\): .*`fetch.heldout_fraction`"):
        fetch.dataset()


def test_duplicated_metadata_lines_are_listed_and_change_nothing_else(project) -> None:
    fetch.dataset()
    once = files(project.folder / "data/raw")
    metadata = project.folder / "images/metadata.jsonl"
    lines = metadata.read_text()
    metadata.write_text(lines * 3)
    fetch.dataset()
    thrice = files(project.folder / "data/raw")
    listed = thrice.pop("skipped.csv").decode().splitlines()[1:]
    assert len(listed) == 2 * len(lines.splitlines())
    assert all("merged: same image as " in row for row in listed)
    assert thrice | {"skipped.csv": once["skipped.csv"]} == once
    assert set(SPLITS) <= {name.removeprefix("images/").partition("-")[0] for name in once}
