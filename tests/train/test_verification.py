from pathlib import Path

import pytest

from t2i.data.manifest import File, write_manifest
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


def test_sound_sets_keep_everything(work, tmp_path) -> None:
    checked = Verification(work, write_caches(tmp_path))
    (work / "step-00000030").mkdir()
    checked.check(finished=True)
    assert checked.trusted() is None
    assert "step-00000030" in results(work)


def test_a_changed_byte_of_a_small_set_is_found_at_once(work, tmp_path) -> None:
    latents, embeds = write_caches(tmp_path)
    shard = embeds / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    before = results(work)
    with pytest.raises(ValueError, match=r"embeds/train-00000.tar: expected sha256"):
        Verification(work, (latents, embeds)).check()
    assert results(work) == before


def test_what_was_computed_from_a_damaged_set_is_deleted(work, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(verification, "_FIRST_SECONDS", 0)
    large = tmp_path / "large"
    large.mkdir()
    with (large / "train-00000.tar").open("wb") as file:
        file.truncate(2**30)  # takes no space, and a second to hash
    write_manifest(large, [File(name="train-00000.tar", count=1, bytes=2**30, sha256="0" * 64)], {})
    checked, before = Verification(work, [large]), results(work)
    checked.check()
    assert checked.trusted() == work / "step-00000020"
    (work / "step-00000030").mkdir()
    (work / "validation-0/step-00000030.safetensors").touch()
    with pytest.raises(ValueError, match=r"large/train-00000.tar: expected sha256"):
        checked.check(finished=True)
    assert results(work) == before


def test_nothing_is_checked_without_folders(work) -> None:
    Verification(work, []).check(finished=True)
