import os
from pathlib import Path

import pytest

from t2i.data.manifest import check_hashes, read_manifest
from t2i.encode.shard_set import ShardSet, shard_set

CODE = ["data/shards.py"]


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2I_WORK_DIR", str(tmp_path / "work"))
    return tmp_path / "set"


def content(name: str) -> dict[str, tuple[str, bytes]]:
    return {f"key-{name}": ("safetensors", name.encode())}


def make(out: Path, made: list[str], *, stop_at: str | None = None) -> None:
    """Makes a set of three files, and records in `made` which shards are written."""

    def write(name: str) -> dict[str, tuple[str, bytes]]:
        if name == stop_at:
            raise RuntimeError("killed")
        made.append(name)
        return content(name)

    with shard_set("encode", {"of": 1}, CODE, out) as files:
        files.add_file("empty.safetensors", lambda: b"empty")
        for name in ("a.tar", "b.tar"):
            add(files, name, write)


def add(files: ShardSet, name: str, write) -> None:
    files.add(name, lambda: write(name))


def test_a_complete_set_is_renamed_and_leaves_no_work_folder(out, tmp_path) -> None:
    made: list[str] = []
    make(out, made)
    assert made == ["a.tar", "b.tar"]
    assert [file.name for file in read_manifest(out).files] == ["a.npy", "a.tar", "b.npy", "b.tar", "empty.safetensors"]
    assert read_manifest(out).made_by == {"of": 1}
    assert not list((tmp_path / "work").iterdir())


def test_resuming_keeps_finished_shards_and_gives_the_same_bytes(out, tmp_path) -> None:
    make(out, [])
    unbroken = {path.name: path.read_bytes() for path in out.iterdir()}
    made: list[str] = []
    with pytest.raises(RuntimeError, match="killed"):
        make(tmp_path / "again", made, stop_at="b.tar")
    assert not (tmp_path / "again").exists()
    make(tmp_path / "again", made)
    assert made == ["a.tar", "b.tar"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == unbroken


@pytest.mark.parametrize("lost", ["files/a.tar", "a.tar.json"])
def test_a_truncated_file_is_made_again(out, tmp_path, lost) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        make(out, [], stop_at="b.tar")
    (path,) = tmp_path.glob(f"work/encode-*/{lost}")
    os.truncate(path, 100 if path.suffix == ".tar" else 0)
    made: list[str] = []
    make(out, made)
    assert made == ["a.tar", "b.tar"]
    check_hashes(out)
