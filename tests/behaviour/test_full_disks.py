"""Full disks: a real tmpfs of a few kilobytes, and a real limit on the size of files."""

import shutil
import signal
from pathlib import Path

import pytest

from stages import fetch
from t2i.train.checkpoint import load_newest
from tests.disks import limit_files, mount
from tests.projects import Project, files
from tests.victims import Ended, calls_of, t2i, victim

pytestmark = pytest.mark.slow

NO_MOUNTS = 77


def on_small_disk(folder: Path, size: int, *words: str) -> Ended:
    """Runs a command in a fork with a small disk mounted at the folder; copies the folder to FOLDER-after at the end.

    Skips the test if mounting is not permitted; another test covers the case with a limit on file sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    after = folder.with_name(folder.name + "-after")

    def run() -> None:
        if not mount(folder, size):
            raise SystemExit(NO_MOUNTS)
        try:
            t2i(*words)
        finally:
            shutil.copytree(folder, after)

    ended = victim(run)
    if ended.code == NO_MOUNTS:
        pytest.skip("cannot mount a tmpfs here; the tests with a limit on file sizes still run")
    return ended


def with_small_files(size: int, *words: str) -> Ended:
    def run() -> None:
        limit_files(size)
        t2i(*words)

    return victim(run)


@pytest.fixture
def encoded(project: Project) -> Project:
    project.fetch_and_encode()
    project.params["runtime"]["checkpoint_every_seconds"] = 1e-9
    project.write()
    return project


@pytest.mark.parametrize(("stage", "made"), [("images", "latents"), ("captions", "embeds")])
def test_encode_resumes_after_a_file_size_limit(encoded, stage, made) -> None:
    out = encoded.folder / "data" / made
    unbroken = files(out)
    for folder in (out, encoded.folder / "data/work"):
        shutil.rmtree(folder)
    ended = with_small_files(len(unbroken["train-00000.tar"]) - 1, "encode", stage)
    assert ended.code == 1
    assert "train-00000.tar: File too large: " in ended.said
    assert " needed, " in ended.said
    assert "Traceback" not in ended.said
    assert not out.exists()
    assert not list(encoded.folder.rglob("*.partial"))
    assert victim(lambda: t2i("encode", stage)).code == 0
    assert files(out) == unbroken


def test_encode_on_a_full_disk_keeps_finished_shards(encoded, monkeypatch) -> None:
    size = 3 * (encoded.folder / "data/latents/train-00000.tar").stat().st_size // 2
    unbroken = files(encoded.folder / "data/latents")
    work = encoded.folder / "data/work"
    for folder in (encoded.folder / "data/latents", work):
        shutil.rmtree(folder)
    ended = on_small_disk(work, size, "encode", "images")
    assert ended.code == 1
    assert ": No space left on device: " in ended.said
    assert "free on this disk" in ended.said
    assert "run the same command again" in ended.said
    work.rmdir()
    (encoded.folder / "data/work-after").rename(work)
    assert {path.name for path in work.glob("encode-*/files/*")} == {"train-00000.tar", "train-00000.npy"}
    assert victim(lambda: t2i("encode", "images")).code == 0
    assert files(encoded.folder / "data/latents") == unbroken


def pages(folder: Path) -> int:
    """Returns the bytes that the files of a folder use on disk, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*"))


def check_that_it_goes_on(ended: Ended, run: Path, model: Path, unbroken: dict[str, bytes]) -> None:
    """Checks a run without room for its third checkpoint: the second is kept, and a rerun gives the uninterrupted result."""
    assert ended.code == 1
    assert "needed, " in ended.said
    assert "Traceback" not in ended.said
    assert not model.exists()
    newest = load_newest(run)
    assert newest is not None
    assert newest.step == 2
    assert "resuming after step 2" in victim(lambda: t2i("train")).said
    assert files(model) == unbroken


def test_training_resumes_after_a_full_disk(encoded) -> None:
    assert victim(lambda: t2i("train")).code == 0
    model, work = encoded.folder / "data/model", encoded.folder / "data/work"
    unbroken, one = files(model), pages(next(work.glob("train-*/step-*")))
    others = sum(pages(folder) for folder in work.glob("train-*/validation-*"))
    shutil.rmtree(work)
    shutil.rmtree(model)
    ended = on_small_disk(work, others + one * 5 // 2, "train")  # two checkpoints fit, a third does not
    assert "step-00000003: No space left on device: " in ended.said
    work.rmdir()
    (encoded.folder / "data/work-after").rename(work)
    (run,) = work.glob("train-*")
    assert sorted(path.name for path in run.glob("step-*")) == ["step-00000001", "step-00000002"]
    check_that_it_goes_on(ended, run, model, unbroken)


def test_training_resumes_after_a_file_size_limit(encoded) -> None:
    assert victim(lambda: t2i("train")).code == 0
    model = encoded.folder / "data/model"
    unbroken = files(model)
    shutil.rmtree(model)
    shutil.rmtree(encoded.folder / "data/work")
    training = calls_of("UNet2DConditionModel", training=True)
    assert victim(lambda: t2i("train"), training, {2: signal.SIGTERM}).code == 128 + signal.SIGTERM
    (run,) = encoded.folder.glob("data/work/train-*")
    ended = with_small_files(len(files(run)["step-00000002/unet.safetensors"]) - 1, "train")
    assert "step-00000003: File too large: " in ended.said
    check_that_it_goes_on(ended, run, model, unbroken)


def test_an_export_on_a_full_disk_leaves_no_model(encoded) -> None:
    assert victim(lambda: t2i("train")).code == 0
    model = encoded.folder / "data/model"
    unbroken = files(model)
    shutil.rmtree(model)
    ended = with_small_files(len(unbroken["vae/diffusion_pytorch_model.safetensors"]) - 1, "train")
    assert ended.code == 1
    assert "model: File too large: " in ended.said
    assert not model.exists()
    ended = on_small_disk(encoded.folder / "out", sum(map(len, unbroken.values())) // 2, "train", "--out", "out/model")
    assert ended.code == 1
    assert "out/model: No space left on device: " in ended.said
    assert "needed, " in ended.said
    assert not list((encoded.folder / "out-after").iterdir())
    ended = victim(lambda: t2i("train"))
    assert "resuming after step 6" in ended.said
    assert files(model) == unbroken


@pytest.mark.parametrize(
    ("stage", "out", "file"),
    [("base", "base", "unet/diffusion_pytorch_model.safetensors"), ("dataset", "raw", "images/train-00000.tar")],
)
def test_fetch_over_a_file_size_limit_leaves_no_output(project, stage, out, file) -> None:
    getattr(fetch, stage)()
    unbroken = files(project.folder / "data" / out)
    shutil.rmtree(project.folder / "data")
    ended = with_small_files(len(unbroken[file]) - 1, "fetch", stage)
    assert ended.code == 1
    assert "File too large" in ended.said
    assert "Traceback" not in ended.said
    assert not (project.folder / "data" / out).exists()
    getattr(fetch, stage)()
    assert files(project.folder / "data" / out) == unbroken


@pytest.mark.parametrize("stage", ["base", "dataset"])
def test_fetch_on_a_full_disk_leaves_no_output(project, stage) -> None:
    out = {"base": "base", "dataset": "raw"}[stage]
    ended = on_small_disk(project.folder / "data", 16384, "fetch", stage)
    assert ended.code == 1
    assert "No space left on device" in ended.said
    assert "Traceback" not in ended.said
    assert not (project.folder / "data-after" / out).exists()
    getattr(fetch, stage)()
    assert (project.folder / "data" / out).is_dir()
