import json
import os
from pathlib import Path

import pytest

from t2i.data.manifest import OutOfDate, check_hashes, check_made_by, describe, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.tar", "b.tar", "empty.safetensors"):
        (folder / name).write_bytes(name.encode() * 100)
    made_by = {"vae": "1f", "params": {"resolution_px": 64, "crop": {"name": "center"}}, "torch": "2"}
    write_manifest(folder, [describe(path, 1) for path in folder.iterdir()], made_by)
    return folder


def test_a_complete_set_passes(folder) -> None:
    assert [file.name for file in read_manifest(folder).files] == ["a.tar", "b.tar", "empty.safetensors"]
    check_hashes(folder)


def test_missing_renamed_empty_and_extra_files_are_named(folder) -> None:
    (folder / "c.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"c.tar: not in .*manifest.json"):
        read_manifest(folder)
    (folder / "b.tar").replace(folder / "c.tar")
    with pytest.raises(ValueError, match=r"b.tar: expected 500 bytes, found nothing"):
        read_manifest(folder)
    (folder / "b.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b.tar: expected 500 bytes, found 0 bytes"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["a.tar", "empty.safetensors"])
def test_a_flipped_bit_with_the_same_size_and_time_is_found(folder, name) -> None:
    path = folder / name
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    read_manifest(folder)
    with pytest.raises(ValueError, match=rf"{name}: expected sha256 [0-9a-f]{{16}}, found [0-9a-f]{{16}}: .* run the stage"):
        check_hashes(folder)


def test_a_set_without_a_manifest_is_unfinished(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"manifest.json: missing: this set was never finished"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ('{"version": 2, "made_by"', "damaged"),
        ('{"version": 2, "made_by": {}}', "damaged: files: Field required"),
        ('{"version": 2, "made_by": {}, "files": [{"name": "a.tar", "count": 1, "bytes": 5}]}', "damaged: files.0.sha256"),
        (
            '{"version": 2, "made_by": {}, "files": [{"name": "a.tar", "count": 1, "bytes": "5", "sha256": ""}]}',
            "files.0.bytes",
        ),
        ('{"version": 1, "made_by": {}, "shards": []}', "version 1, wanted 2"),
        ("\xff\xfe", "damaged"),
    ],
)
def test_a_damaged_or_old_manifest_is_rejected(folder, content, said) -> None:
    (folder / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"manifest.json: .*{said}.*run the stage that writes .* again"):
        read_manifest(folder)


def test_a_difference_in_made_by_shows_both_values(folder) -> None:
    check_made_by(folder, {}, "encode.images")
    check_made_by(folder, {"vae": "1f", "params": {"resolution_px": 64, "another": 1}}, "encode.images")
    for wanted, said in (
        ({"tokenizer": "3"}, r"manifest.json: .*`tokenizer`"),
        ({"vae": "2e"}, r"set: .*`vae` '1f', .* '2e'.*`t2i encode images`"),
        ({"params": {"resolution_px": 32}}, r"`encode.images.resolution_px` 64, .* 32"),
        ({"params": {"crop": {"name": "random"}}}, r"`encode.images.crop` {'name': 'center'}, .* {'name': 'random'}"),
    ):
        with pytest.raises(OutOfDate, match=said):
            check_made_by(folder, wanted, "encode.images")


def test_manifest_bytes_depend_only_on_content(folder) -> None:
    before = (folder / "manifest.json").read_bytes()
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.files[::-1], dict(reversed(manifest.made_by.items())))
    assert (folder / "manifest.json").read_bytes() == before
    assert json.loads(before)["files"][0].keys() == {"name", "count", "bytes", "sha256"}
