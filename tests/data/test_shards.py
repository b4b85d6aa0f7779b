import io
import os
import random
import resource
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load
from torch import Tensor

from t2i.data.index import Index
from t2i.data.manifest import check_hashes, describe, write_manifest
from t2i.data.members import scan
from t2i.data.reader import Reader
from t2i.data.shards import pack, write_shard


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_WORK_DIR", str(tmp_path.with_name(tmp_path.name + "-work")))


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
        rows += write_shard(tmp_path / f"train-{number:05d}.tar", contents)
    write_manifest(tmp_path, rows, {"by": "a test"})
    return tmp_path


def test_equal_records_give_equal_bytes(tmp_path) -> None:
    members = {"b": ("txt", b"two"), "a": ("txt", b"one")}
    first = write_shard(tmp_path / "x.tar", members)
    second = write_shard(tmp_path / "y.tar", dict(reversed(members.items())))
    assert [file.sha256 for file in first] == [file.sha256 for file in second]


def test_webdataset_reads_what_we_write(folder) -> None:
    theirs = {
        row["__key__"]: load(row["safetensors"])["moments"]
        for row in webdataset.WebDataset(str(folder / "train-00000.tar"), shardshuffle=False)
    }
    reader = Reader()
    ours = {
        member.key: reader.tensors(member)["moments"]
        for member in Index(folder, "train")
        if member.shard.name == "train-00000.tar"
    }
    assert list(ours) == sorted(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_reading_keeps_no_file_open(tmp_path) -> None:
    x, names = pack({"x": torch.ones(1)}, ""), [f"train-{number:05d}.tar" for number in range(150)]
    rows = [row for name in names for row in write_shard(tmp_path / name, {name[:11]: ("safetensors", x)})]
    write_manifest(tmp_path, rows, {})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 16, before[1]))
    try:
        reader = Reader()
        assert all(reader.tensors(member)["x"] == 1 for member in Index(tmp_path, "train"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_writing_to_a_record_changes_no_file(folder) -> None:
    (member, *_), before = Index(folder, "train"), (folder / "train-00000.tar").read_bytes()
    tensors = Reader().tensors(member)
    for tensor in tensors.values():
        tensor.fill_(1)
    assert (folder / "train-00000.tar").read_bytes() == before


def test_a_float16_overflow_is_named() -> None:
    with pytest.raises(ValueError, match=r"record 7: `moments` is not finite in float16 \(largest magnitude 1e\+05"):
        pack({"moments": torch.tensor([1e5])}, "record 7")


KEYS = some.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=40)


@given(contents=some.dictionaries(KEYS, some.binary(max_size=1500), min_size=1, max_size=8))
def test_every_record_is_where_the_index_says(tmp_path_factory, contents) -> None:
    path = tmp_path_factory.mktemp("shards") / "train-00000.tar"
    write_shard(path, {key: ("png", content) for key, content in contents.items()})
    reader = Reader()
    assert {member.key: reader.content(member) for member in scan(path)} == contents
    with tarfile.open(path) as tar:
        assert [entry.name for entry in tar] == [f"{key}.png" for key in sorted(contents)]


def forget_indices(folder: Path) -> None:
    """Makes a set as it was written before shards had indices."""
    for path in folder.glob("*.npy"):
        path.unlink()
    rows = [describe(path, 3) for path in folder.glob("*.tar")]
    write_manifest(folder, rows, {})


def test_a_set_without_indices_is_indexed_in_the_work_folder(folder) -> None:
    indexed = list(Index(folder, "train"))
    forget_indices(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert list(Index(folder, "train")) == list(Index(folder, "train")) == indexed
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(list(Path(os.environ["T2I_WORK_DIR"]).glob("indices/*.npy"))) == 2


def test_a_truncated_shard_is_an_error_at_every_length(folder) -> None:
    forget_indices(folder)
    shard = folder / "train-00001.tar"
    content = shard.read_bytes()
    *_, last = scan(shard)
    first = describe(folder / "train-00000.tar", 3)
    for kept in range(0, last.offset + last.size + 512, 97):  # the rest is padding
        shard.write_bytes(content[:kept])
        write_manifest(folder, [first, describe(shard, 3)], {})
        with pytest.raises(ValueError, match=r"train-00001.tar: (damaged or )?(truncated|no end|expected 3 records)"):
            list(Index(folder, "train"))
        shard.write_bytes(content)
        write_manifest(folder, [first, describe(shard, 3)], {})
        shard.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=rf"train-00001.tar: expected {len(content)} bytes, found {kept} bytes"):
            Index(folder, "train")


def test_a_damaged_header_is_an_error(folder) -> None:
    shard = folder / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(bytes(content))
    reader = Reader()
    with pytest.raises(ValueError, match=r"train-00000.tar: record key00: not at byte 512, where its index has it"):
        [reader.content(member) for member in Index(folder, "train")]
    for path in folder.glob("*.npy"):
        path.unlink()
    write_manifest(folder, [describe(path, 3) for path in folder.glob("*.tar")], {})
    with pytest.raises(ValueError, match=r"train-00000.tar: damaged .* at byte 0"):
        list(Index(folder, "train"))


def test_an_index_of_another_shard_is_an_error(folder) -> None:
    (folder / "train-00000.npy").write_bytes((folder / "train-00001.npy").read_bytes())
    reader = Reader()
    with pytest.raises(ValueError, match=r"train-00000.tar: record key10: not at byte"):
        [reader.content(member) for member in Index(folder, "train")]


@pytest.mark.parametrize(
    "rows", [np.zeros(3), np.zeros(3, "S4"), np.array([{}] * 3, object), np.zeros((3, 1), [("key", "S4")])]
)
def test_a_file_with_other_columns_is_no_index(folder, rows) -> None:
    np.save(folder / "train-00000.npy", rows, allow_pickle=True)
    write_manifest(folder, [describe(path, 3) for path in folder.iterdir() if path.suffix != ".json"], {})
    with pytest.raises(ValueError, match=r"train-00000.npy: not a complete index"):
        list(Index(folder, "train"))


def test_a_repaired_shard_without_an_index_is_read(folder) -> None:
    forget_indices(folder)
    shard = folder / "train-00001.tar"
    sound = shard.read_bytes()
    *_, last = scan(shard)
    shard.write_bytes(sound[: last.offset - 512].ljust(len(sound), b"\0"))  # without its last record, but of its size
    with pytest.raises(ValueError, match=r"train-00001.tar: expected sha256"):
        list(Index(folder, "train"))
    shard.write_bytes(sound)
    assert len(list(Index(folder, "train"))) == 6


def test_places_of_many_records(folder) -> None:
    index = Index(folder, "train")
    wanted = [member.key for member in index][::2]
    assert index.places(wanted) == {key: index.place(key) for key in wanted}
    assert index.places([]) == {}
    with pytest.raises(ValueError, match="no record zzz"):
        index.places(["zzz", *wanted])


def test_a_record_is_found_from_any_place(folder) -> None:
    index = Index(folder, "train")
    for place, member in enumerate(index):
        assert {index.place(member.key, near) for near in range(8)} == {place}
    with pytest.raises(ValueError, match=r"no record key99, .* different datasets"):
        index.place("key99")
    assert index[1:3] == [index[1], index[2]]
    with pytest.raises(IndexError):
        index[6]


def of_type(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(entry: tarfile.TarInfo) -> None:
        entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 0

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        *((name, None, "not a plain file") for name in ("../x.png", "/abs.png", "noextension", "dir/x.png", ".png", "x" * 150)),
        *(
            (f"k.{kind}", None, "wanted one of safetensors")
            for kind in ("pyd", "pkl", "pickle", "pth", "npy", "pt", "png.pkl", "json")
        ),
        *(
            ("k.safetensors", of_type(kind), "not a plain file")
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
        ),
    ],
)
def test_members_with_other_names_or_types_are_rejected(tmp_path, name, change, said) -> None:
    with tarfile.open(tmp_path / "train-00000.tar", "w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 3
        if change is not None:
            change(entry)
        tar.addfile(entry, io.BytesIO(b"abc"))
    write_manifest(tmp_path, [describe(tmp_path / "train-00000.tar", 1)], {})
    with pytest.raises(ValueError, match=said):
        list(Index(tmp_path, "train"))
    assert {path.name for path in tmp_path.iterdir()} == {"train-00000.tar", "manifest.json"}


def test_duplicate_keys_are_named(tmp_path) -> None:
    with tarfile.open(tmp_path / "train-00000.tar", "w") as tar:
        for _ in range(2):
            entry = tarfile.TarInfo("k.safetensors")
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"abc"))
    write_manifest(tmp_path, [describe(tmp_path / "train-00000.tar", 2)], {})
    with pytest.raises(ValueError, match=r"train-00000.tar: duplicate record k"):
        list(Index(tmp_path, "train"))
    rows = [row for n in range(2) for row in write_shard(tmp_path / f"train-{n:05d}.tar", {"k": ("safetensors", b"abc")})]
    write_manifest(tmp_path, rows, {})
    with pytest.raises(ValueError, match=r"duplicate record k, in train-00000.tar and train-00001.tar"):
        Index(tmp_path, "train").unique_keys()


def everything(folder: Path) -> dict[str, dict[str, Tensor]]:
    reader = Reader()
    return {
        member.key: {name: tensor.clone() for name, tensor in reader.tensors(member).items()}
        for member in Index(folder, "train")
    }


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Returns the content with bytes flipped, zeroed, cut off, repeated or swapped, at random places."""
    made, at = bytearray(content), chance.randrange(len(content))
    match chance.randrange(6):
        case 0 | 1:
            for _ in range(chance.choice((1, 1, 1, 4, 64))):
                made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
        case 2:
            made[at : at + 512] = bytes(min(512, len(made) - at))
        case 3:
            del made[at:]
        case 4:
            made[at:at] = made[at : at + chance.choice((1, 512, 1024))]
        case 5:
            block, other = at // 512 * 512, chance.randrange(len(made)) // 512 * 512
            made[block : block + 512], made[other : other + 512] = made[other : other + 512], made[block : block + 512]
    return bytes(made)


@pytest.mark.slow
@pytest.mark.parametrize("hashes", [True, False])
def test_random_damage_to_a_set_is_an_error_or_harmless(folder, hashes) -> None:
    """Runs for 30 s, or T2I_FUZZ_SECONDS. Without hashes, the payload may differ; only ValueErrors may be raised."""
    undamaged, chance = everything(folder), random.Random(hashes)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    end, tried, refused, unnamed = time.monotonic() + float(os.environ.get("T2I_FUZZ_SECONDS", "30")), 0, 0, 0
    while time.monotonic() < end:
        path = chance.choice(list(files))
        path.write_bytes(damaged(files[path], chance))
        started = time.monotonic()
        try:
            if hashes:
                check_hashes(folder)
            found = everything(folder)
        except ValueError as error:
            unnamed += str(folder) not in str(error)
            refused += 1
        else:
            assert found.keys() == undamaged.keys()
            if hashes:
                assert all(torch.equal(found[key][name], undamaged[key][name]) for key in found for name in undamaged[key])
        assert time.monotonic() - started < 5
        path.write_bytes(files[path])
        tried += 1
    assert unnamed == 0
    assert tried > 100
    assert refused > tried // (2 if hashes else 4)
