import io
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset
from safetensors.torch import load

from t2i.shards import Reader, index, pack, read_manifest, write_manifest, write_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for number in range(2):
        contents = {
            f"key{number}{n}": (
                "safetensors",
                pack({"moments": torch.randn(1, 8, 4, 4), "crop": torch.zeros(1, 2, dtype=torch.int32)}, ""),
            )
            for n in (2, 0, 1)
        }
        rows.append(write_shard(tmp_path / f"train-{number:05d}.tar", contents))
    write_manifest(tmp_path, rows, {"by": "a test"})
    return tmp_path


def test_equal_records_give_equal_bytes(tmp_path) -> None:
    members = {"b": ("txt", b"two"), "a": ("txt", b"one")}
    first = write_shard(tmp_path / "x.tar", members)
    second = write_shard(tmp_path / "y.tar", dict(reversed(members.items())))
    assert first["sha256"] == second["sha256"]


def test_webdataset_reads_what_we_write(folder) -> None:
    theirs = {
        row["__key__"]: load(row["safetensors"])["moments"]
        for row in webdataset.WebDataset(str(folder / "train-00000.tar"), shardshuffle=False)
    }
    reader = Reader()
    ours = {
        member.key: reader.tensors(member)["moments"]
        for member in index(folder, "train")
        if member.shard.name == "train-00000.tar"
    }
    assert list(ours) == sorted(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_overflows_float16_is_named() -> None:
    with pytest.raises(ValueError, match=r"record 7: `moments` is not finite in float16 \(largest magnitude 1e\+05"):
        pack({"moments": torch.tensor([1e5])}, "record 7")


@pytest.mark.parametrize("kept_bytes", [100, 512, 1500, 3000])
def test_a_shard_cut_short_is_named_with_both_sizes(folder, kept_bytes) -> None:
    shard = folder / "train-00001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:kept_bytes])
    with pytest.raises(ValueError, match=rf"train-00001.tar: expected {len(content)} bytes, found {kept_bytes} bytes"):
        index(folder, "train")


def test_a_damaged_header_is_an_error(folder) -> None:
    shard = folder / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged header at byte 0"):
        index(folder, "train")


def test_missing_and_foreign_shards_are_named(folder) -> None:
    (folder / "train-00009.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-00009.tar: not in"):
        read_manifest(folder)
    (folder / "train-00009.tar").unlink()
    (folder / "train-00001.tar").unlink()
    with pytest.raises(ValueError, match=r"train-00001.tar: expected \d+ bytes, found nothing"):
        read_manifest(folder)


def test_a_set_without_manifest_was_never_finished(tmp_path) -> None:
    with pytest.raises(ValueError, match="never finished"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../x.png", "/abs.png", "noextension", "dir/x.png"])
def test_members_of_other_names_are_refused(tmp_path, name) -> None:
    with tarfile.open(tmp_path / "train-00000.tar", "w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"abc"))
    size = (tmp_path / "train-00000.tar").stat().st_size
    write_manifest(tmp_path, [{"name": "train-00000.tar", "count": 1, "bytes": size, "sha256": ""}], {})
    with pytest.raises(ValueError, match="no plain file named"):
        index(tmp_path, "train")
