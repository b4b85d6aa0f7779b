"""A store of shards: the whole pipeline with its shards in an S3 bucket, which is cut off and comes back."""

import gc
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stages import tools
from t2i.data.bucket import StoreLost
from t2i.data.manifest import Manifest
from t2i.train.history import History
from tests.projects import Project, files, outputs
from tests.s3 import S3, serving

pytestmark = pytest.mark.slow

SETS = ("raw/images", "latents", "embeds")


@pytest.fixture
def s3(monkeypatch) -> Iterator[S3]:
    with serving(monkeypatch) as server:
        yield server


@pytest.fixture
def windowed(project: Project) -> Project:
    """A project of many shards, of which training reads two at a time."""
    project.params["fetch"]["records_per_shard"] = 2
    project.params["encode"]["captions"]["records_per_shard"] = 3
    project.params["train"] |= {"order": {"name": "windows", "shards": 2}, "steps": 12}
    project.write()
    project.fetch_and_encode()
    return project


@pytest.fixture
def stored(windowed: Project, s3: S3) -> Project:
    """The same with its shards in the bucket, and a cache for two thirds of what training reads; `local` is the other one."""
    shutil.copytree("data", "local")
    keep_in_store(windowed, s3.url, room(Path("data")))
    windowed.fetch_and_encode()
    gc.collect()  # a stage ends with its process, and with it the use of copies
    return windowed


def keep_in_store(project: Project, url: str, size: int) -> None:
    project.params["runtime"] |= {"store": url, "shard_cache": {"folder": "cache", "gb": size / 1e9}}
    project.write()


def shards(folder: Path) -> dict[str, int]:
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    return {file.name: file.bytes for file in manifest.files if file.is_shard}


def room(data: Path) -> int:
    return sum(size for name in ("latents", "embeds") for size in shards(data / name).values()) * 2 // 3


def cached() -> int:
    return sum(path.stat().st_size for path in Path("cache").rglob("*.tar"))


def trained(project: Project, work: str, monkeypatch) -> dict[str, bytes]:
    """Trains in a work folder of its own; returns the files of the result."""
    monkeypatch.setenv("T2I_WORK_DIR", work)
    project.train()
    return {name: content for folder in ("model", "reports/train", "validation") for name, content in named(folder)}


def named(folder: str) -> Iterator[tuple[str, bytes]]:
    return ((f"{folder}/{name}", content) for name, content in files(Path("data") / folder).items())


@pytest.fixture
def unbroken(windowed: Project, monkeypatch) -> dict[str, bytes]:
    return trained(windowed, "work of the local run", monkeypatch)


def after_step(number: int, monkeypatch, action) -> None:
    """Does something after a step, once."""
    append, seen = History.append, []

    def appended(history, figures) -> None:
        append(history, figures)
        seen.append(figures)
        if len(seen) == number:
            action()

    monkeypatch.setattr(History, "append", appended)


def test_sets_in_a_store_differ_in_no_byte(windowed: Project, s3: S3) -> None:
    before = {name: content for name, content in outputs(Path("data")).items() if name.startswith(SETS)}
    keep_in_store(windowed, s3.url, 10**9)
    windowed.fetch_and_encode()
    after = {name: content for name, content in outputs(Path("data")).items() if name.startswith(SETS)}
    assert after == {name: content for name, content in before.items() if not name.endswith(".tar")}
    manifests = [json.loads(before[f"{name}/manifest.json"]) for name in SETS]
    hashes = {row["sha256"] for manifest in manifests for row in manifest["files"] if row["name"].endswith(".tar")}
    assert {name.removesuffix(".tar") for name in s3.names()} == hashes
    assert not list(Path("data/work").rglob("*.tar")), "the work folder has what the store has"


def test_training_from_a_store_gives_the_same_bits(unbroken, stored: Project, monkeypatch) -> None:
    assert trained(stored, "work", monkeypatch) == unbroken
    assert 0 < cached() <= room(Path("local"))


def test_every_reader_works(stored: Project, monkeypatch) -> None:
    stored.train()
    stored.evaluate()
    assert (Path("data/reports/report.html")).stat().st_size > 10_000
    for words, wanted in ((["doctor", "--deep"], "round trip: 8 records decoded"), (["plan"], "embeddings")):
        said = CliRunner().invoke(tools.app, words).output
        assert wanted in said
    assert cached() <= room(Path("local"))


def test_a_store_that_comes_back_changes_nothing(unbroken, stored: Project, s3: S3, monkeypatch, capsys) -> None:
    def cut_off() -> None:
        s3.cut_off()
        threading.Timer(2.0, s3.come_back).start()

    after_step(3, monkeypatch, cut_off)
    assert trained(stored, "work", monkeypatch) == unbroken
    assert capsys.readouterr().err.count("trying again") == 1


def test_a_store_that_is_gone_ends_training_with_a_checkpoint(unbroken, stored: Project, s3: S3, monkeypatch) -> None:
    monkeypatch.setenv("T2I_PATIENCE_SECONDS", "1")
    after_step(3, monkeypatch, s3.cut_off)
    with pytest.raises(StoreLost, match=rf"^{s3.url}/\w+.tar: cannot be read .* then run the same command"):
        trained(stored, "work", monkeypatch)
    assert list(Path("work").glob("train-*/step-0000000[3-9]")), "no checkpoint of what was trained"
    s3.come_back()
    assert trained(stored, "work", monkeypatch) == unbroken


def test_a_signal_ends_the_waiting_for_a_store(stored: Project, s3: S3, monkeypatch) -> None:
    def cut_off() -> None:
        s3.cut_off()
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()

    after_step(3, monkeypatch, cut_off)
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        trained(stored, "work", monkeypatch)
    assert ended.value.code == 128 + signal.SIGTERM
    assert time.monotonic() - began < 60, "it waited for the store, whose patience is ten minutes"
    assert list(Path("work").glob("train-*/step-0000000[3-9]")), "no checkpoint of what was trained"


def test_windows_that_do_not_fit_are_refused_at_the_start(stored: Project, monkeypatch) -> None:
    stored.params["runtime"]["shard_cache"]["gb"] = 3e-5
    with pytest.raises(ValueError, match=r"needed together have .*`runtime.shard_cache.gb` is 3e-05"):
        trained(stored, "work", monkeypatch)
    assert not list(Path("work").glob("train-*/validation-*/*.safetensors"))


def test_a_grown_dataset_encodes_its_new_images_alone(stored: Project, capsys) -> None:
    (stored.folder / "images" / "more").mkdir()
    metadata = stored.folder / "images" / "metadata.jsonl"
    first = json.loads(metadata.read_text().splitlines()[0])
    shutil.copyfile(stored.folder / "images" / first["file_name"], stored.folder / "images" / "more.png")
    with (stored.folder / "images" / "more.png").open("ab") as file:
        file.write(b"another file")
    with metadata.open("a") as file:
        file.write(json.dumps({"file_name": "more.png", "text": "one more"}) + "\n")
    capsys.readouterr()
    stored.fetch_and_encode()
    assert "encoded 1 of" in capsys.readouterr().err
