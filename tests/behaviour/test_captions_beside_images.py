"""Captions beside the images, from the files to the trained model."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from accelerate.state import AcceleratorState
from typer.testing import CliRunner

from stages import encode, fetch
from stages.tools import app
from t2i.data.manifest import check_hashes, read_manifest
from tests import tiny
from tests.projects import Project, files

Pair = tuple[str, bytes, list[str]]
"""The name of an image without its extension, its content and its captions."""


def beside(folder: Path, pairs: list[Pair]) -> dict[str, Any]:
    for name, image, captions in pairs:
        (folder / f"{name}.png").write_bytes(image)
        (folder / f"{name}.txt").write_text("\n\n".join(captions), encoding="utf-8")
    return {"name": "folder", "captions": {"name": "sidecar", "extensions": ["txt"]}}


def in_metadata(folder: Path, pairs: list[Pair]) -> dict[str, Any]:
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for name, image, captions in pairs:
            (folder / f"{name}.png").write_bytes(image)
            file.write(json.dumps({"file_name": f"{name}.png", "text": captions}) + "\n")
    return {"name": "folder", "captions": {"name": "metadata", "column": "text"}}


def in_tars(folder: Path, pairs: list[Pair]) -> dict[str, Any]:
    for number, half in enumerate((pairs[::2], pairs[1::2])):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for name, image, captions in half:
                for end, content in (("png", image), ("json", json.dumps({"caption": captions}).encode())):
                    info = tarfile.TarInfo(f"{name}.{end}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    caption = {"name": "json", "key": "caption"}
    return {"name": "webdataset", "files": "*.tar", "image_extensions": ["png"], "caption": caption}


def in_parquet(folder: Path, pairs: list[Pair]) -> dict[str, Any]:
    table = pyarrow.Table.from_pylist([{"image": image, "text": captions} for _, image, captions in reversed(pairs)])
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    return {"name": "parquet", "files": "*.parquet", "image_column": "image", "caption_column": "text"}


@pytest.mark.slow
def test_each_way_to_hold_captions_gives_the_same_caches(project) -> None:
    pairs = [
        (
            f"{n:04d}",
            (project.folder / f"images/{n:04d}.png").read_bytes(),
            [f"square {n}, a caf\u00e9", "a square"][: 1 + n % 2],
        )
        for n in range(24)
    ]
    fetch.base()
    made = []
    for number, write in enumerate((beside, in_metadata, in_tars, in_parquet)):
        local = project.folder / f"local{number}"
        local.mkdir()
        project.params["fetch"] |= {"source": write(local, pairs), "local": str(local)}
        project.write()
        fetch.dataset()
        encode.images()
        encode.captions()
        made.append({name: files(project.folder / "data" / name) for name in ("latents", "embeds")})
        assert json.loads((project.folder / "data/reports/encode-captions/metrics.json").read_text())["captions"] == 36
        for name in ("raw", "latents", "embeds"):
            shutil.rmtree(project.folder / "data" / name)
    assert len(made[0]["latents"]) > 2
    assert made == [made[0]] * 4


@pytest.fixture
def repeated(project: Project) -> Project:
    """A project that is fetched and encoded, in which kohya's folder repeats half of the 24 images three times."""
    tiny.write_kohya_folders(project.folder / "images")
    project.params["fetch"]["source"] = {"name": "folder", "captions": {"name": "kohya", "extensions": ["txt"]}}
    project.params["train"] |= {"steps": None, "epochs": 2}
    project.write()
    project.fetch_and_encode()
    return project


def test_repeats_reach_training_through_the_embeddings(repeated, capfd) -> None:
    embeds = repeated.folder / "data/embeds"
    rows = [json.loads(line) for line in (repeated.folder / "data/raw/captions.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    assert repeated.json("data/embeds/repeats.json") == {row["key"]: 3 for row in train if "repeats" in row}
    assert [file.count for file in read_manifest(embeds).files if file.name == "repeats.json"] == [1]
    check_hashes(embeds)
    epoch = sum(row.get("repeats", 1) for row in train)
    assert epoch > len(train)

    AcceleratorState._reset_state(reset_partial_state=True)
    plan = CliRunner().invoke(app, ["plan"]).output
    assert f"{len(train)} train ({epoch} with repeats), " in plan
    steps = -(-2 * epoch // 4)
    assert re.search(rf"steps +{steps} of 4 images: 2(\.\d+)? epochs", plan)
    capfd.readouterr()
    repeated.train()
    assert repeated.json("data/reports/train/metrics.json")["steps"] == steps
    assert f"on {len(train)} records ({epoch} with repeats), " in capfd.readouterr().err


def test_other_repeats_are_other_embeddings_and_no_other_images(repeated) -> None:
    data = repeated.folder / "data"
    latents, embeds = files(data / "latents"), files(data / "embeds")
    (repeated.folder / "images/3_square").rename(repeated.folder / "images/1_square")
    fetch.dataset()
    encode.images()
    encode.captions()
    assert files(data / "latents") == latents
    changed = files(data / "embeds")
    assert embeds.keys() - changed.keys() == {"repeats.json"}
    assert {name for name in changed if changed[name] != embeds[name]} == {"manifest.json"}


def test_dataset_json_has_the_tags_of_training_captions(project) -> None:
    metadata = project.folder / "images/metadata.jsonl"
    metadata.write_text(re.sub(r'"square (\d+)"', r'"Square, number \1"', metadata.read_text()))
    fetch.dataset()
    described = project.json("data/raw/dataset.json")
    assert described["tags"]["square"] == described["records"]["train"]
    heldout = [
        row["captions"][0].removeprefix("Square, ")
        for row in map(json.loads, (project.folder / "data/raw/captions.jsonl").read_text().splitlines())
        if row["split"] == "heldout"
    ]
    assert heldout
    assert not described["tags"].keys() & set(heldout)
