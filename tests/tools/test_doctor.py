import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from stages import fetch
from stages.tools import app
from t2i.core.locks import locked
from t2i.data.manifest import read_manifest, write_manifest
from t2i.data.shards import Reader, index, pack, write_shard
from tests.projects import ROOT, Project, flip


@pytest.fixture
def checkout(project: Project) -> Project:
    for name in (".git", ".dvc"):
        (project.folder / name).mkdir()
    (project.folder / "dvc.yaml").touch()
    return project


@pytest.fixture
def encoded(checkout: Project) -> Project:
    checkout.fetch_and_encode()
    return checkout


def said(*arguments: str, wrong: int = 0) -> str:
    done = CliRunner().invoke(app, ["doctor", *arguments])
    assert done.output.count("\nwrong  ") + done.output.startswith("wrong") == wrong, done.output
    assert done.exit_code == (1 if wrong else 0)
    assert ("nothing stands in the way of a run" in done.output) == (not wrong)
    return done.output


def test_a_run_that_can_go_is_let_go_before_and_after_its_caches_are_there(checkout) -> None:
    before = said()
    assert "note   data/latents: is not there yet: `dvc repro` makes it" in before
    checkout.fetch_and_encode()
    after = said("--deep")
    assert "data/latents: 4 files, " in after
    assert "caches: made of this base, dataset and parameters; 17 records train, 7 held out" in after
    assert "round trip: 8 records decoded and held to their images" in after


def test_it_changes_nothing(encoded) -> None:
    before = {path: path.stat().st_mtime_ns for path in encoded.folder.rglob("*")}
    said("--deep")
    assert {path: path.stat().st_mtime_ns for path in encoded.folder.rglob("*")} == before


def test_every_parameter_that_is_wrong_is_a_line(checkout) -> None:
    checkout.params["train"]["batch_sise"] = 4
    checkout.params["sweep"]["prompts"] = "many"
    checkout.write()
    lines = said(wrong=2)
    assert "`train.batch_sise` is no parameter; did you mean `batch_size`?" in lines
    assert "`sweep.prompts`" in lines


def test_sections_that_no_stage_reads_are_said(checkout) -> None:
    checkout.params |= {"trian": {"steps": 5}, "encode": checkout.params["encode"] | {"imagess": {}}}
    checkout.write()
    lines = said()
    assert "note   parameters: no stage reads the section `trian`" in lines
    assert "note   parameters: no stage reads the section `encode.imagess`" in lines


@pytest.mark.parametrize(
    ("section", "changes", "line"),
    [
        ("train", {"precision": "fp16"}, "settings: `train.precision` fp16 needs a GPU"),
        ("runtime", {"processes": 3}, "settings: `train.batch_size` 4 is no multiple of `runtime.processes` 3"),
        ("train", {"trainable": "lora"}, "base: `train.trainable` 'lora' fits no parameter of the UNet"),
    ],
)
def test_settings_that_do_not_go_together_are_said(checkout, section, changes, line) -> None:
    checkout.params[section] |= changes
    checkout.write()
    assert f"wrong  {line}" in said(wrong=1)


def test_a_base_that_does_not_load_is_said(checkout) -> None:
    fetch.base()
    shutil.rmtree(checkout.folder / "data/base/scheduler")
    assert "wrong  base: " in said(wrong=1)


def test_a_flipped_bit_is_found_by_looking_deep(encoded) -> None:
    flip(encoded.folder / "data/latents/train-00000.tar")
    assert "sizes as written (--deep reads them)" in said()
    assert "wrong  data/latents: data/latents/train-00000.tar: expected sha256" in said("--deep", wrong=1)


def test_caches_that_do_not_fit_are_said(encoded) -> None:
    encoded.params["encode"]["images"]["interpolation"] = "bicubic"
    encoded.write()
    assert "wrong  caches: data/latents: was made with `params.interpolation` 'lanczos'" in said(wrong=1)


def test_moments_that_are_not_of_their_images_are_found_by_looking_deep(checkout) -> None:
    checkout.params["base"] |= {"local": str(ROOT / "base/openmoji"), "clip": str(ROOT / "base/openmoji/clip")}
    checkout.write()  # a VAE that was trained: a random one draws about the same of any latents
    checkout.fetch_and_encode()
    output = said("--deep")
    (mean,) = [float(line.split(": ")[2].split()[0]) for line in output.splitlines() if "round trip" in line]
    checkout.params["encode"]["images"]["min_psnr"] = mean - 3
    checkout.write()
    said("--deep")
    latents, reader = checkout.folder / "data/latents", Reader()
    manifest, rows = read_manifest(latents), []
    for file in manifest.files:
        records = {}
        for member in index(latents, file.name.partition("-")[0]):
            if member.shard.name == file.name:
                tensors = reader.tensors(member)
                other = torch.full_like(tensors["moments"], 4.0)
                records[member.key] = ("safetensors", pack(tensors | {"moments": other}, ""))
        rows.append(write_shard(latents / file.name, records))
    write_manifest(latents, rows, manifest.made_by)
    assert "wrong  round trip: data/latents: decoded, records are" in said("--deep", wrong=1)


def test_what_others_do_and_have_left_is_said(encoded) -> None:
    encoded.train()
    (work,) = (encoded.folder / "data/work").glob("train-*")
    (work / "finished").unlink()
    (encoded.folder / "data/work/encode-images-0").mkdir()
    flip(next(work.glob("step-*/unet.safetensors")))
    with locked(encoded.folder / "data/work/encode-images-0"):
        lines = said("--deep", wrong=1)
    assert "encode-images-0: process " in lines
    assert (
        "of a run that was broken off, step-00000006 the newest checkpoint: the same command goes on; rm -r forgets it" in lines
    )
    assert "step-00000006: unet.safetensors is not as it was written" in lines


def test_a_checkout_that_dvc_cannot_use_is_said(checkout) -> None:
    (checkout.folder / "dvc.lock").touch()
    Path(".git").rmdir()
    lines = said(wrong=2)
    assert "has no .git: git init" in lines
    assert "dvc.lock is empty, as a full disk leaves it: git checkout dvc.lock" in lines
