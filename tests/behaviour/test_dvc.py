"""Checks with DVC itself, after a full run of the tiny model, which stages an edit makes stale (DVC would rerun them)."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from networkx import ancestors
from ruamel.yaml import YAML

from t2i.data.index import Index
from t2i.data.reader import Reader
from t2i.data.records import SPLITS
from t2i.tools.single_file import stored_tensors, write_single_file
from tests import tiny
from tests.projects import LORA, ROOT, Project

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("dvc")]  # one worker, so that the fixture is built once


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout where `dvc repro` has run on a tiny base and a folder of images."""
    folder = copied(tmp_path_factory.mktemp("checkout"))
    tiny.make_base(folder / "base/tiny")
    tiny.make_images(folder / "data/local", 16)
    project = Project(folder, Path("base/tiny"))
    project.params["fetch"]["local"] = "data/local"
    project.params["train"]["steps"] = 2
    project.write()
    run(folder, ["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"])
    return folder


def copied(folder: Path) -> Path:
    """Copies the code and the pipeline into a folder."""
    for name in ("stages", "t2i"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvcignore", "dvc.yaml", "README.md", "params.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def run(folder: Path, *commands: list[str], **variables: str) -> str:
    """Runs commands, and returns the output of the last one."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for command in commands:
        words = [sys.executable, "-m", *command] if command[0] == "dvc" else command
        done = subprocess.run(words, cwd=folder, env=environment | variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def stale(folder: Path) -> set[str]:
    with Repo(str(folder)) as repo:
        return {stage.rpartition(":")[2] for stage in repo.status()}


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> set[str]:
    """Returns the stages that an edit of params.yaml makes stale; reverts the edit."""
    path = folder / "params.yaml"
    before = path.read_bytes()
    params = YAML(typ="safe").load(before.decode())
    edit(params)
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)
    try:
        return stale(folder)
    finally:
        path.write_bytes(before)


def test_a_new_image_is_encoded_alone(tmp_path) -> None:
    (tmp_path / "checkout").mkdir()
    folder = copied(tmp_path / "checkout")
    tiny.make_base(folder / "base/tiny")
    tiny.make_images(folder / "data/local", 9)
    project = Project(folder, Path("base/tiny"))
    project.params["fetch"]["local"] = "data/local"
    project.write()
    links = ["dvc", "config", "cache.type", "hardlink,copy"]  # DVC then makes the files read-only
    run(folder, ["git", "init", "-q"], ["dvc", "init", "-q"], links, ["dvc", "repro", "encode-images"])
    before = encoded_records(folder)
    shutil.rmtree(folder / "data/local")
    tiny.make_images(folder / "data/local", 10)
    said = run(folder, ["dvc", "repro", "encode-images"])
    assert "encoded 1 of 10 records; the others" in said
    assert before.items() < encoded_records(folder).items()


def test_moving_the_shards_to_a_store_makes_nothing_stale(repository, tmp_path) -> None:
    folder = Path(shutil.copytree(repository, tmp_path / "checkout"))

    def move(params: dict[str, Any]) -> None:
        params["runtime"]["store"] = str(tmp_path / "store")
        with (folder / "params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(params, file)

    move(YAML(typ="safe").load((folder / "params.yaml").read_text()))
    stages = ("fetch-dataset", "encode-images", "encode-captions")
    said = [run(folder, ["dvc", "repro", "--force", "--single-item", stage]) for stage in stages]
    assert "encoded 0 of 16 records" in said[1]
    assert not [path for name in ("raw/images", "latents", "embeds") for path in (folder / "data" / name).glob("*.tar")]
    assert stale(folder) == set()
    shutil.rmtree(folder / "data/model")
    run(folder, ["dvc", "repro"])


def encoded_records(folder: Path) -> dict[str, bytes]:
    reader = Reader()
    found = [member for split in SPLITS for member in Index(folder / "data/latents", split)]
    return {member.key: bytes(reader.content(member)) for member in found}


def test_nothing_is_stale_after_a_run_or_a_readme_edit(repository) -> None:
    assert stale(repository) == set()
    (repository / "README.md").write_text("other words")
    (repository / "t2i/__pycache__").mkdir(exist_ok=True)
    assert stale(repository) == set()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "prompt_dropout", 0.5),
        ("train", "use_flips", False),
        ("train", "order", {"name": "windows", "shards": 2}),
        ("train", "learning_rate", 1e-5),
        ("train", "schedule", {"name": "linear"}),
        ("train.objective", "weighting", {"name": "min_snr", "gamma": 3.0}),
        ("train.ema", "decay", 0.5),
    ],
)
def test_train_parameters_never_reencode(repository, section, key, value) -> None:
    def edit(params: dict[str, Any]) -> None:
        for part in section.split("."):
            params = params[part]
        assert params[key] != value
        params[key] = value

    assert change(repository, edit) == {"train"}


def test_resolution_reruns_only_encode_images(repository) -> None:
    assert change(repository, lambda params: params["encode"]["images"].update(resolution_px=48)) == {"encode-images"}


def test_validation_prompts_rerun_only_encode_captions(repository) -> None:
    edited = change(repository, lambda params: params["encode"]["captions"].update(validation_prompts=["a circle"]))
    assert edited == {"encode-captions"}


def test_a_new_vae_reruns_only_fetch_base_at_first(repository) -> None:
    assert change(repository, lambda params: params["base"].update(vae="base/tiny/vae")) == {"fetch-base"}


def test_another_text_encoder_never_reencodes_images(repository) -> None:
    path = repository / "data/base/text_encoder/config.json"
    before = path.read_bytes()
    path.unlink()
    path.write_bytes(before + b"\n")
    try:
        found = stale(repository)
    finally:
        path.write_bytes(before)
    assert "encode-captions" in found
    assert "encode-images" not in found


def test_evaluation_parameters_never_retrain(repository) -> None:
    assert change(repository, lambda params: params["sweep"].update(guidance_scales=[2.0])) == {"evaluate-model"}
    edited = change(repository, lambda params: params["evaluate"].update(prompts=3))
    assert edited == {"evaluate-base", "evaluate-model", "evaluate-report"}


def test_an_adapter_reruns_training_and_what_opens_its_model(repository) -> None:
    assert change(repository, lambda params: params["train"].update(LORA)) == {"train", "evaluate-model", "evaluate-report"}


def test_the_strength_of_an_adapter_never_retrains(repository) -> None:
    assert change(repository, lambda params: params["sweep"].update(adapter_scale=0.5)) == {"evaluate-model"}


def test_runtime_reruns_nothing(repository) -> None:
    assert change(repository, lambda params: params["runtime"].update(log_every_steps=7, keep_checkpoints=9)) == set()


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("t2i/train/ema.py", {"train"}),
        ("t2i/train/weighting.py", {"train"}),
        ("t2i/train/timesteps.py", {"train"}),
        ("t2i/evaluate/metrics.py", {"evaluate-base", "evaluate-model", "evaluate-report"}),
        ("t2i/evaluate/page.html", {"evaluate-report"}),
        ("t2i/fetch/sources/folder.py", {"fetch-dataset"}),
        ("t2i/fetch/sources/hub.py", set()),
        ("t2i/model/adapters/lora/adapter.py", set()),
        ("t2i/model/adapters/none/adapter.py", {"train", "evaluate-model", "evaluate-report"}),
    ],
)
def test_a_code_edit_reruns_only_the_stages_that_use_it(repository, file, stages) -> None:
    path = repository / file
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    try:
        assert stale(repository) == stages
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("t2i/train/weighting.py", {"train", "evaluate-model", "evaluate-report"}),
        ("t2i/evaluate/metrics.py", {"evaluate-base", "evaluate-model", "evaluate-report"}),
        ("README.md", set()),
        ("t2i/core/.files.py.swp", set()),
        ("t2i/train/loop.py~", set()),
    ],
)
def test_an_edit_marks_its_stages_and_what_follows(repository, file, stages) -> None:
    path = repository / file
    before = path.read_bytes() if path.exists() else None
    path.write_bytes((before or b"") + b"\n")
    try:
        with Repo(str(repository)) as repo:
            graph = repo.index.graph  # an edge leads from a stage to one that it depends on
            edited = [stage for stage in graph if stage.name in stale(repository)]
            marked = {*edited, *(after for stage in edited for after in ancestors(graph, stage))}
            assert {stage.name for stage in marked} == stages
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_skipped_csv_does_not_rerun_the_evaluation(repository) -> None:
    skipped = repository / "data/raw/skipped.csv"
    before = skipped.read_bytes()
    skipped.chmod(0o644)
    skipped.write_bytes(before + b"another,empty image: no bytes\n")
    try:
        assert stale(repository) == {"fetch-dataset"}  # skipped.csv is its output
    finally:
        skipped.write_bytes(before)


def test_a_corrected_caption_reencodes_no_images(repository) -> None:
    metadata = repository / "data/local/metadata.jsonl"
    before = metadata.read_bytes()
    metadata.write_bytes(before.replace(b"square 3", b"a third square"))
    try:
        assert stale(repository) == {"fetch-dataset"}
        run(repository, ["dvc", "repro", "-q", "fetch-dataset"])
        assert "encode-captions" in stale(repository)
        assert "encode-images" not in stale(repository)
    finally:
        metadata.write_bytes(before)


def test_another_single_file_reruns_fetch_base(tmp_path) -> None:
    folder, cache = copied(tmp_path / "checkout"), tmp_path / "cache"
    base = tiny.make_base(tmp_path / "tiny")
    for name, source in (("tiny", base), ("clip", base / "clip")):
        snapshot = cache / f"models--someone--{name}/snapshots" / ("0" * 40)
        shutil.copytree(source, snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs/main").write_text("0" * 40)
    write_single_file(base, stored_tensors(base / "unet"), folder / "mine.safetensors", "fp32", {})
    project = Project(folder, base)
    project.params["base"] |= {"local": "mine.safetensors", "config": "someone/tiny", "clip": "someone/clip"}
    project.write()
    offline = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    run(folder, ["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q", "fetch-base"], **offline)
    assert "fetch-base" not in stale(folder)
    write_single_file(base, stored_tensors(base / "unet"), folder / "mine.safetensors", "fp16", {})
    assert "fetch-base" in stale(folder)
    run(folder, ["dvc", "repro", "-q", "fetch-base"], **offline)
    source = project.json("data/base/source.json")
    assert source["source"] == "mine.safetensors"
    assert source["sha256"] == hashlib.sha256((folder / "mine.safetensors").read_bytes()).hexdigest()
