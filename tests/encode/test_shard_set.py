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
    """Makes a set of three files, noting each that is really made."""

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


def test_a_set_takes_its_name_whole_and_leaves_no_work(out, tmp_path) -> None:
    made: list[str] = []
    make(out, made)
    assert made == ["a.tar", "b.tar"]
    assert [file.name for file in read_manifest(out).files] == ["a.tar", "b.tar", "empty.safetensors"]
    assert read_manifest(out).made_by == {"of": 1}
    assert not list((tmp_path / "work").iterdir())


def test_what_is_finished_is_not_made_again_and_the_bytes_are_the_same(out, tmp_path) -> None:
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
def test_what_has_lost_bytes_since_is_made_again(out, tmp_path, lost) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        make(out, [], stop_at="b.tar")
    (path,) = tmp_path.glob(f"work/encode-*/{lost}")
    os.truncate(path, 100 if path.suffix == ".tar" else 0)
    made: list[str] = []
    make(out, made)
    assert made == ["a.tar", "b.tar"]
    check_hashes(out)
