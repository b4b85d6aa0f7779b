from collections.abc import Mapping
from pathlib import Path

import pytest

from t2i.core.locks import locked
from t2i.data.index import Index
from t2i.data.manifest import read_manifest
from t2i.data.reader import Reader
from t2i.data.storage import Folders
from t2i.encode.shard_set import store_folder, whole_set
from t2i.encode.store import identity

CODE = ["data/shards.py"]
TWO = {"train-00000.tar": ["a", "b"], "train-00001.tar": ["c"]}
GROWN = {"train-00000.tar": ["a", "aa"], "train-00001.tar": ["b", "c"]}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2I_WORK_DIR", str(tmp_path / "work"))
    return tmp_path / "set"


def make(out: Path, shards: Mapping[str, list[str]], *, stop_at: str | None = None, of: int = 1) -> list[str]:
    """Makes a set, and returns the keys of the records that had to be made."""
    made: list[str] = []
    with whole_set(store_folder("encode", {"of": of}, CODE), {"of": of}, out, Folders(), finished=False) as files:
        files.add_file("empty.safetensors", b"empty")
        for name, keys in shards.items():
            if name == stop_at:
                raise RuntimeError("killed")
            found = files.find(name, {key: identity(key) for key in keys})
            made += found.missing
            files.add(name, found, lambda missing=found.missing: {key: f"content of {key}".encode() for key in missing})
    return made


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_complete_set_is_renamed_and_its_records_stay(out, tmp_path) -> None:
    assert make(out, TWO) == ["a", "b", "c"]
    assert [file.name for file in read_manifest(out).files if file.name[-3:] != "npy"] == ["empty.safetensors", *TWO]
    assert read_manifest(out).made_by == {"of": 1}
    reader = Reader()
    assert {m.key: bytes(reader.content(m)).decode() for m in Index(out, "train")} == {
        key: f"content of {key}" for key in "abc"
    }
    (work,) = tmp_path.glob("work/encode-*")
    assert (work / "complete").exists()
    assert not (work / "files").exists()


def test_a_second_set_has_the_same_bytes_and_makes_nothing(out, tmp_path) -> None:
    make(out, TWO)
    assert make(tmp_path / "again", TWO) == []
    assert content(tmp_path / "again") == content(out)


def test_a_killed_set_goes_on_after_its_finished_shards(out, tmp_path) -> None:
    make(out, TWO, of=2)
    with pytest.raises(RuntimeError, match="killed"):
        make(tmp_path / "again", TWO, stop_at="train-00001.tar")
    assert not (tmp_path / "again").exists()
    assert make(tmp_path / "again", TWO) == ["c"]
    assert {name: data for name, data in content(tmp_path / "again").items() if name in TWO} == {
        name: data for name, data in content(out).items() if name in TWO
    }


def test_a_grown_or_shrunk_set_makes_only_new_records(out, tmp_path) -> None:
    make(out, TWO)
    assert make(out, GROWN) == ["aa"]
    grown = content(out)
    assert make(out, TWO) == []
    make(tmp_path / "fresh", GROWN, of=2)
    fresh = content(tmp_path / "fresh")
    assert all(grown[name] == fresh[name] for name in GROWN)


def test_the_store_keeps_what_the_newest_set_needs(out, tmp_path) -> None:
    make(out, GROWN)
    make(out, TWO)
    assert make(out, GROWN) == ["aa"]
    make(out, TWO, of=2)
    assert len(list(tmp_path.glob("work/encode-*"))) == 1
    assert make(out, TWO) == ["a", "b", "c"]


def test_a_store_in_use_is_not_removed(out, tmp_path) -> None:
    make(out, TWO)
    (work,) = tmp_path.glob("work/encode-*")
    with locked(work):
        make(out, TWO, of=2)
    assert make(tmp_path / "again", TWO) == []


def test_an_error_of_the_thread_ends_the_set(out) -> None:
    def refuse() -> dict[str, bytes]:
        raise ValueError("not finite")

    work = store_folder("encode", {}, CODE)
    with pytest.raises(ValueError, match="not finite"), whole_set(work, {}, out, Folders(), finished=False) as files:
        files.add("train-00000.tar", files.find("train-00000.tar", {"a": identity("a")}), refuse)
    assert not out.exists()
