import json
from pathlib import Path

import pytest

from t2i.core.signals import Interrupted
from t2i.data.manifest import write_manifest
from t2i.data.storage import File, Folders
from t2i.train import verification
from t2i.train.verification import Verification
from tests.tiny import write_caches


@pytest.fixture
def work(tmp_path) -> Path:
    folder = tmp_path / "work"
    for name in ("step-00000010", "step-00000020", "validation-0"):
        (folder / name).mkdir(parents=True)
    (folder / "validation-0/step-00000010.safetensors").touch()
    return folder


def results(work: Path) -> set[str]:
    return {path.name for path in work.rglob("step-*")}


def passed() -> None:
    """Nothing asks the run to stop."""


@pytest.fixture
def slow(tmp_path, monkeypatch) -> Path:
    """A damaged set that takes a second to hash, and no space."""
    monkeypatch.setattr(verification, "_FIRST_SECONDS", 0)
    folder = tmp_path / "large"
    folder.mkdir()
    with (folder / "train-00000.tar").open("wb") as file:
        file.truncate(2**30)
    write_manifest(folder, [File(name="train-00000.tar", count=1, bytes=2**30, sha256="0" * 64)], {})
    return folder


def flip(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)


def test_sound_sets_keep_everything(work, tmp_path) -> None:
    checked = Verification(work, write_caches(tmp_path), Folders())
    (work / "step-00000030").mkdir()
    checked.wait(passed)
    assert checked.spared() is None
    assert "step-00000030" in results(work)
    assert not (work / "unverified.json").exists()


def test_a_changed_byte_of_a_small_set_is_found_at_once(work, tmp_path) -> None:
    latents, embeds = write_caches(tmp_path)
    flip(embeds / "train-00000.tar")
    before = results(work)
    with pytest.raises(ValueError, match=r"embeds/train-00000.tar: expected sha256 .*deleted"):
        Verification(work, (latents, embeds), Folders()).check()
    assert results(work) == before


def test_sets_of_different_records_are_found(work, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    latents, _ = write_caches(tmp_path)
    _, embeds = write_caches(tmp_path / "other", embedded=9)
    with pytest.raises(ValueError, match=r"latents and .*embeds have different train records"):
        Verification(work, (latents, embeds), Folders()).check()


def test_what_was_computed_from_a_damaged_set_is_deleted(work, slow) -> None:
    checked, before = Verification(work, [slow], Folders()), results(work)
    checked.check()
    assert checked.spared() == work / "step-00000020"
    (work / "step-00000030").mkdir()
    (work / "validation-0/step-00000030.safetensors").touch()
    with pytest.raises(ValueError, match=r"large/train-00000.tar: expected sha256"):
        checked.wait(passed)
    assert results(work) == before


def test_what_a_killed_start_computed_is_not_trusted(work, slow) -> None:
    before = results(work)
    killed = Verification(work, [slow], Folders())
    (work / "step-00000030").mkdir()
    again = Verification(work, [slow], Folders())
    assert killed.spared() == again.spared() == work / "step-00000020"
    with pytest.raises(ValueError, match="deleted"):
        again.wait(passed)
    assert results(work) == before


def test_a_checkpoint_made_again_is_not_trusted(work, slow) -> None:
    checked = Verification(work, [slow], Folders())
    (work / "step-00000020").rmdir()
    (work / "step-00000020").mkdir()
    assert checked.spared() == work / "step-00000010"
    with pytest.raises(ValueError, match="deleted"):
        checked.wait(passed)
    assert "step-00000020" not in results(work)


def test_a_file_that_cannot_be_read_deletes_nothing(work, tmp_path) -> None:
    latents, embeds = write_caches(tmp_path)
    (embeds / "train-00000.npy").unlink()
    (embeds / "train-00000.npy").mkdir()
    content = (embeds / "manifest.json").read_text()
    size = (embeds / "train-00000.npy").stat().st_size
    rows = json.loads(content)
    for row in rows["files"]:
        row["bytes"] = size if row["name"] == "train-00000.npy" else row["bytes"]
    (embeds / "manifest.json").write_text(json.dumps(rows))
    checked = Verification(work, (latents, embeds), Folders())
    (work / "step-00000030").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        checked.check()
    assert "step-00000030" in results(work)


def test_waiting_can_be_interrupted(work, slow) -> None:
    def interrupted() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        Verification(work, [slow], Folders()).wait(interrupted)


def test_nothing_is_checked_without_folders(work) -> None:
    Verification(work, [], Folders()).wait(passed)
    assert not (work / "unverified.json").exists()
