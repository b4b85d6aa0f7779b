import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from stages import fetch
from stages.tools import app
from t2i.core.locks import locked
from t2i.data.index import Index
from t2i.data.manifest import read_manifest, write_manifest
from t2i.data.reader import Reader
from t2i.data.shards import pack, write_shard
from t2i.tools.single_file import stored_tensors, write_single_file
from tests import tiny
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


def run(*arguments: str, wrong: int = 0) -> str:
    """Runs doctor, checks the number of problems, and returns the output."""
    done = CliRunner().invoke(app, ["doctor", *arguments])
    assert done.output.count("\nwrong  ") + done.output.startswith("wrong") == wrong, done.output
    assert done.exit_code == (1 if wrong else 0)
    assert ("no problem found" in done.output) == (not wrong)
    return done.output


def test_a_valid_project_passes_with_and_without_caches(checkout) -> None:
    before = run()
    assert re.search(r"note   data/latents: .*`dvc repro`", before)
    checkout.fetch_and_encode()
    after = run("--deep")
    assert "data/latents: 8 files, " in after
    assert re.search("ok     caches: .*17 training and 7 held-out records", after)
    assert "ok     round trip: 8 records decoded" in after


def test_doctor_changes_no_file(encoded) -> None:
    before = {path: path.stat().st_mtime_ns for path in encoded.folder.rglob("*")}
    run("--deep")
    assert {path: path.stat().st_mtime_ns for path in encoded.folder.rglob("*")} == before


def test_every_wrong_parameter_gets_a_line(checkout) -> None:
    checkout.params["train"]["batch_sise"] = 4
    checkout.params["sweep"]["prompts"] = "many"
    checkout.write()
    lines = run(wrong=2)
    assert re.search("`train.batch_sise` .*`batch_size`", lines)
    assert "`sweep.prompts`" in lines


def test_sections_that_no_stage_reads_are_noted(checkout) -> None:
    checkout.params |= {"trian": {"steps": 5}, "encode": checkout.params["encode"] | {"imagess": {}}}
    checkout.write()
    lines = run()
    assert re.search("note   parameters: params.yaml: .*`trian`", lines)
    assert re.search("note   parameters: params.yaml: .*`encode.imagess`", lines)


@pytest.mark.parametrize(
    ("section", "changes", "line"),
    [
        ("train", {"precision": "fp16"}, "settings: `train.precision`.* fp16"),
        ("runtime", {"attention": "xformers"}, "settings: `runtime.attention`.* xformers.* auto"),
        ("runtime", {"processes": 3}, "settings: `train.batch_size`.* 4 .*`runtime.processes`.* 3"),
        ("train", {"trainable": "lora"}, "base: `train.trainable`.* 'lora'"),
    ],
)
def test_incompatible_settings_are_reported(checkout, section, changes, line) -> None:
    checkout.params[section] |= changes
    checkout.write()
    assert re.search(f"wrong  {line}", run(wrong=1))


def test_a_device_that_is_not_there_is_reported_once(checkout, machine_with) -> None:
    machine_with(None)
    fetch.base()
    checkout.params["runtime"]["device"] = "xpu"
    checkout.write()
    lines = run(wrong=1)
    assert re.search("wrong  device: `runtime.device` is xpu, .*only cpu.*auto or cpu", lines)
    assert "ok     checkpoints: " in lines


def test_a_base_that_cannot_be_trained_is_reported(checkout, tmp_path) -> None:
    base = shutil.copytree(checkout.params["base"]["local"], tmp_path / "other")
    config = json.loads((base / "unet/config.json").read_text())
    (base / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))
    checkout.params["base"] |= {"local": str(base), "clip": str(base / "clip")}
    checkout.write()
    assert re.search("wrong  base: .*other: unet: takes 9 channels", run(wrong=1))


def test_a_fetched_base_with_damaged_weights_is_reported(checkout) -> None:
    fetch.base()
    (weights,) = (checkout.folder / "data/base/vae").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: tensors[name] for name in sorted(tensors)[1:]}, weights)
    assert re.search("wrong  base: .*vae: 1 missing tensors", run(wrong=1))


@pytest.mark.parametrize(
    "change",
    [{"variant": "fp16"}, {"clip_skip": 1}, {"vae": "someone/vae"}, {"hub": "someone/other"}, {"local": "another"}],
    ids=["variant", "clip_skip", "vae", "hub", "local"],
)
def test_a_base_fetched_with_other_parameters_is_noted(checkout, tmp_path, change) -> None:
    base = tiny.make_base(tmp_path / "base", text_layers=2)
    tiny.make_base(tmp_path / "another/base", text_layers=3)
    checkout.params["base"] |= {"local": str(base), "clip": str(base / "clip")}
    checkout.write()
    fetch.base()
    assert re.search("ok     base: data/base: .*load as family", run())
    local = {"local": str(tmp_path / "another/base"), "clip": str(tmp_path / "another/base/clip")}
    checkout.params["base"] |= local if "local" in change else change
    checkout.write()
    done = CliRunner().invoke(app, ["doctor"])
    assert "load as family" not in done.output
    assert re.search("(note   base: data/base.*`t2i fetch base`|wrong  base: .*someone/vae)", done.output)
    assert CliRunner().invoke(app, ["plan"]).exit_code == 1


def test_a_single_file_is_checked_before_and_after_it_is_fetched(checkout, tmp_path) -> None:
    base, mine = tiny.make_base(tmp_path / "other"), tmp_path / "mine"
    shutil.copytree(base, mine / "config")
    write_single_file(base, stored_tensors(base / "unet"), mine / "a.safetensors", "fp32", {})
    checkout.params["base"] |= {"local": str(mine), "clip": str(mine / "config/clip"), "config": str(mine / "config")}
    checkout.write()
    lines = run()
    assert re.search("ok     base: .*mine: can be trained", lines)
    assert re.search("note   base: .*mine is not fetched yet", lines)
    fetch.base()
    assert re.search("ok     base: data/base: .*load as family", run())
    write_single_file(base, stored_tensors(base / "unet"), mine / "a.safetensors", "fp16", {})
    done = CliRunner().invoke(app, ["doctor", "--deep"])
    assert re.search("note   base: data/base: its sha256 is .*`t2i fetch base`", done.output)
    checkout.params["base"]["config"] = None
    checkout.write()
    assert re.search("wrong  base: `base.config` is null", run(wrong=1))


def test_deep_finds_a_flipped_bit(encoded) -> None:
    flip(encoded.folder / "data/latents/train-00000.tar")
    assert "--deep" in run()
    assert re.search("wrong  data/latents: data/latents/train-00000.tar: .*sha256", run("--deep", wrong=1))


def test_caches_that_a_rerun_writes_again_are_noted(encoded) -> None:
    encoded.params["encode"]["images"]["interpolation"] = "bicubic"
    encoded.write()
    said = "`encode.images.interpolation` 'lanczos', but it is now 'bicubic'; .*`dvc repro` writes it again"
    assert re.search(f"note   caches: data/latents: .*{said}", run("--deep"))
    encoded.params["encode"]["images"]["interpolation"] = "lanczos"
    encoded.write()
    (encoded.folder / "data/latents/train-00000.tar").unlink()
    assert re.search("wrong  data/latents: .*train-00000.tar: .*found nothing", run(wrong=1))


def test_caches_of_another_version_are_noted(encoded) -> None:
    manifest = encoded.folder / "data/latents/manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    assert re.search("note   data/latents: .*manifest.json: version 1, wanted 2; .*`dvc repro`", run())


def test_deep_finds_moments_that_do_not_match_their_images(checkout) -> None:
    checkout.params["base"] |= {"local": str(ROOT / "base/openmoji"), "clip": str(ROOT / "base/openmoji/clip")}
    checkout.write()  # a trained VAE: a random one decodes all latents to nearly the same image
    checkout.fetch_and_encode()
    output = run("--deep")
    (mean,) = map(float, re.findall(r"round trip: .*mean PSNR ([\d.]+) dB", output))
    checkout.params["encode"]["images"]["min_psnr"] = mean - 3
    checkout.write()
    run("--deep")
    latents, reader = checkout.folder / "data/latents", Reader()
    manifest, rows = read_manifest(latents), []
    for file in (file for file in manifest.files if file.name.endswith(".tar")):
        records = {}
        for member in Index(latents, file.name.partition("-")[0]):
            if member.shard.name == file.name:
                tensors = reader.tensors(member)
                other = torch.full_like(tensors["moments"], 4.0)
                records[member.key] = ("safetensors", pack(tensors | {"moments": other}, ""))
        rows += write_shard(latents / file.name, records)
    write_manifest(latents, rows, manifest.made_by)
    assert re.search("wrong  round trip: data/latents: .*`t2i encode images`", run("--deep", wrong=1))


def test_running_and_interrupted_work_is_reported(encoded) -> None:
    encoded.train()
    (work,) = (encoded.folder / "data/work").glob("train-*")
    (work / "finished").unlink()
    (encoded.folder / "data/work/encode-images-0").mkdir()
    flip(next(work.glob("step-*/unet.safetensors")))
    with locked(encoded.folder / "data/work/encode-images-0"):
        lines = run("--deep", wrong=1)
    assert re.search(rf"note   .*encode-images-0: .*process {os.getpid()}", lines)
    assert re.search(rf"note   .*{work.name}: .*step-00000006.*`rm -r .*{work.name}`", lines)
    assert re.search("wrong  .*step-00000006: unet.safetensors", lines)


def test_a_checkout_that_dvc_cannot_use_is_reported(checkout) -> None:
    (checkout.folder / "dvc.lock").touch()
    Path(".git").rmdir()
    lines = run(wrong=2)
    assert "has a .git: git init" in lines
    assert re.search("dvc.lock is empty.*git checkout dvc.lock", lines)


def test_a_checkout_inside_another_repository_is_accepted(checkout) -> None:
    (checkout.folder / ".git").rename(checkout.folder.parent / ".git")
    try:
        run()
    finally:
        (checkout.folder.parent / ".git").rmdir()


def test_a_linked_folder_of_images_is_reported(checkout, tmp_path_factory) -> None:
    (checkout.folder / "images/photos").symlink_to(tmp_path_factory.mktemp("photos"))
    assert re.search("wrong  dataset: .*images/photos: a link to the folder.*`fetch.local`", run(wrong=1))


def test_images_that_nothing_tracks_are_noted(checkout) -> None:
    checkout.params["fetch"]["local"] = "images"
    checkout.write()
    assert "note   dataset: neither git nor DVC tracks images/0000.png, images/0001.png, " in run()
    (checkout.folder / "images.dvc").touch()
    assert "nor DVC tracks" not in run()


def test_a_missing_folder_of_images_is_reported(checkout) -> None:
    checkout.params["fetch"]["local"] = "gone"
    checkout.write()
    assert re.search("wrong  dataset: `fetch.local` 'gone'", run(wrong=1))


def test_outputs_behind_a_link_are_reported(checkout, tmp_path_factory) -> None:
    (checkout.folder / "data").symlink_to(tmp_path_factory.mktemp("disk"))
    assert re.search("wrong  checkout: data: a link .*cache.dir .*T2I_WORK_DIR", run(wrong=1))


def test_another_clip_than_the_fetched_one_is_noted(checkout) -> None:
    fetch.base()
    checkout.params["base"]["clip"] = "someone/clip"
    checkout.write()
    assert re.search(r"note   base: data/base-clip: its source is clip, but `base.clip` is someone/clip", run())


def test_of_a_stale_base_and_clip_the_base_is_named(checkout) -> None:
    fetch.base()
    checkout.params["base"] |= {"hub": "someone/something", "clip": "someone/clip"}
    checkout.write()
    assert re.search("note   base: data/base: its source is base, .*someone/something", run())
    planned = CliRunner().invoke(app, ["plan"])
    assert str(planned.exception).startswith("data/base: its source is base")


def test_a_group_that_the_environment_describes_is_noted(checkout, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2" in run(wrong=1)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "note   checkout: WORLD_SIZE is 2: `train` waits" in run()


@pytest.mark.parametrize(("system", "said"), [("Windows", "outputs are not locked"), ("Darwin", "Darwin is not tested")])
def test_a_system_that_is_not_tested_is_noted(checkout, monkeypatch, system, said) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    assert re.search(f"note   system: .*{said}", run())


def test_timesteps_that_the_schedule_lacks_are_reported(checkout) -> None:
    fetch.base()
    checkout.params["train"]["objective"]["timesteps"] = {"name": "range", "begin": 0, "end": 5000, "multiplier": 2.0}
    checkout.write()
    assert "`train.objective.timesteps.end` is 5000, but the schedule has 1000" in run(wrong=1)


def test_another_base_than_the_fetched_one_is_noted(checkout, machine_with) -> None:
    machine_with(None)
    fetch.base()
    assert "trains for days" not in run()
    checkout.params["base"]["hub"] = "someone/something"
    checkout.write()
    lines = run()
    assert re.search("note   base: data/base: .*someone/something.*`t2i fetch base`", lines)
    assert re.search("note   device: PyTorch finds no GPU here; .* trains for days on a CPU", lines)
