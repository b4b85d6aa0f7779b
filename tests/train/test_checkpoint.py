import os
from pathlib import Path

import pytest
import torch

from t2i.core.locks import locked
from t2i.train.checkpoint import Checkpoint, finish, load_newest, make_room, save


def saved(work: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        save(work, Checkpoint(step, 2, 1, {"unet": {"w": torch.full((3,), float(step))}}), keep)


def test_the_newest_is_loaded_exactly(tmp_path) -> None:
    saved(tmp_path, 5, 10)
    found = load_newest(tmp_path)
    assert found is not None
    assert (found.step, found.threads) == (10, 2)
    assert torch.equal(found.tensors["unet"]["w"], torch.full((3,), 10.0))


def test_only_the_newest_are_kept(tmp_path) -> None:
    saved(tmp_path, 1, 2, 3, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_checkpoint_is_skipped_and_reported(tmp_path, capsys, damage) -> None:
    saved(tmp_path, 5, 10)
    weights = tmp_path / "step-00000010" / "unet.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        weights.write_bytes(bytes(content))
    elif damage == "cut":
        weights.write_bytes(bytes(content[:-1]))
    elif damage == "remove":
        weights.unlink()
    else:
        (tmp_path / "step-00000010" / "MANIFEST.json").write_text("{")
    found = load_newest(tmp_path, discard_damaged=True)
    assert found is not None
    assert found.step == 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    said = capsys.readouterr().err
    assert "step-00000010: " in said
    assert "resuming after step 5" in said


def test_an_incomplete_checkpoint_is_not_loaded(tmp_path) -> None:
    saved(tmp_path, 5)
    (tmp_path / "step-00000005").rename(tmp_path / "step-00000007.tmp")
    assert load_newest(tmp_path) is None
    saved(tmp_path, 7)
    assert load_newest(tmp_path) is not None


def test_make_room_removes_only_finished_runs(tmp_path) -> None:
    for name in ("done", "broken off", "this"):
        (tmp_path / name).mkdir()
        saved(tmp_path / name, 5)
    finish(tmp_path / "done")
    finish(tmp_path / "this")
    make_room(tmp_path / "this", restart=False)
    assert {path.name for path in tmp_path.iterdir()} == {"broken off", "this"}
    assert load_newest(tmp_path / "this") is not None
    make_room(tmp_path / "this", restart=True)
    assert load_newest(tmp_path / "this") is None


def test_make_room_is_concurrent_and_keeps_locked_runs(tmp_path) -> None:
    for name in ("held", *map(str, range(40))):
        (tmp_path / name).mkdir()
        saved(tmp_path / name, 5)
        finish(tmp_path / name)
    children = []
    with locked(tmp_path / "held"):
        for own in ("one", "two"):
            (tmp_path / own).mkdir()
            child = os.fork()
            if child == 0:
                try:
                    make_room(tmp_path / own, restart=False)
                except BaseException:
                    os._exit(1)
                os._exit(0)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"held", "one", "two"}


def test_a_spared_checkpoint_is_not_removed(tmp_path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, Checkpoint(step, 1, 1, {"unet": {"w": torch.ones(1)}}), keep=1, spared=tmp_path / "step-00000001")
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001", "step-00000004"]
