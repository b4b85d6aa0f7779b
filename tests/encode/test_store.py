import os
from collections.abc import Callable
from pathlib import Path

import pytest

from t2i.data.shards import write_shard
from t2i.data.storage import Folders
from t2i.encode import store
from t2i.encode.store import Store, identity

RECORDS = {"a": b"first", "b": b"second", "c": b"third"}


def keep(folder: Path, records: dict[str, bytes]) -> None:
    """Writes a shard, and adds it to the store in a folder."""
    folder.mkdir(exist_ok=True)
    kept, path = Store(folder, Folders()), folder.parent / "train-00000.tar"
    rows = write_shard(path, {key: ("safetensors", content) for key, content in records.items()})
    kept.keep(kept.find(identities(records)), path, rows, records)


def identities(records) -> dict[str, str]:
    return {key: identity(key) for key in records}


def taken(folder: Path, keys) -> dict[str, bytes]:
    """Returns what the store gives of some records."""
    kept = Store(folder, Folders())
    found = kept.find(identities(keys))
    if found.digest is None:
        return {key: kept.content(place) for key, place in found.stored.items()}
    row, index = kept.give(found.digest, folder.parent / "given-00007.tar")
    assert (row.name, index.name) == ("given-00007.tar", "given-00007.npy")
    assert (folder.parent / row.name).read_bytes() == (folder.parent / "train-00000.tar").read_bytes()
    return dict(RECORDS)


def test_a_record_is_found_in_whatever_shard_it_was(tmp_path) -> None:
    keep(tmp_path / "store", RECORDS)
    assert taken(tmp_path / "store", "bcx") == {"b": b"second", "c": b"third"}
    assert taken(tmp_path / "store", "abc") == RECORDS


def test_a_whole_shard_takes_no_disk_space(tmp_path) -> None:
    keep(tmp_path / "store", RECORDS)
    taken(tmp_path / "store", "abc")
    assert len({path.stat().st_ino for path in tmp_path.rglob("*.tar")}) == 1


def test_disks_without_hard_links_get_copies(tmp_path, monkeypatch) -> None:
    def refuse(*paths) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    keep(tmp_path / "store", RECORDS)
    assert taken(tmp_path / "store", "abc") == RECORDS
    assert not list(tmp_path.rglob("*.partial"))


def flip(path: Path, what: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(what)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda tar, row: flip(tar, b"second"), "ac"),
        (lambda tar, row: os.truncate(tar, tar.read_bytes().index(b"third")), "ab"),
        (lambda tar, row: os.truncate(tar, 0), ""),
        (lambda tar, row: tar.unlink(), ""),
        (lambda tar, row: row.unlink(), ""),
        (lambda tar, row: os.truncate(row, 20), ""),
        (lambda tar, row: row.write_bytes(b"\xff"), ""),
        (lambda tar, row: row.write_text("[]"), ""),
        (lambda tar, row: flip(tar, b"ustar"), "abc"),  # the records are intact, the tar is not
    ],
    ids=["bit", "cut", "empty", "no-tar", "no-index", "cut-index", "not-utf8", "other-json", "tar-header"],
)
def test_damaged_content_is_never_given(tmp_path, damage: Callable[[Path, Path], None], left) -> None:
    keep(tmp_path / "store", RECORDS)
    (tar,), (row,) = (tmp_path / "store").glob("*.tar"), (tmp_path / "store").glob("*.json")
    tar.unlink()
    tar.write_bytes((tmp_path / "train-00000.tar").read_bytes())
    damage(tar, row)
    assert taken(tmp_path / "store", RECORDS) == {key: RECORDS[key] for key in left}
    keep(tmp_path / "store", RECORDS)
    assert taken(tmp_path / "store", RECORDS) == RECORDS


def test_pruning_removes_what_was_not_asked_for(tmp_path) -> None:
    folder = tmp_path / "store"
    keep(folder, RECORDS)
    keep(folder, {"d": b"fourth"})
    (folder / "x.tar.partial").touch()
    assert len(list(folder.iterdir())) == 7
    kept = Store(folder, Folders())
    kept.find(identities("d"))
    kept.prune()
    assert taken(folder, "abcd") == {"d": b"fourth"}
    assert {path.suffix for path in folder.iterdir()} == {".tar", ".npy", ".json", ""}
    assert (folder / store.COMPLETE).exists()
