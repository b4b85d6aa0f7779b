import re

import pytest

from t2i.fetch.inside import Inside
from t2i.fetch.source import content_key, matching, record_of


def test_keys_are_16_digits_of_the_content() -> None:
    assert content_key(b"a") != content_key(b"b")
    assert len(content_key(b"a")) == 16


def test_record_of_uses_the_image_hash_as_key() -> None:
    one, several = record_of("row 1", lambda: b"image", "a"), record_of("row 2", lambda: b"image", ["a", None])
    assert one.key == several.key == one.identity == content_key(b"image")
    assert (one.captions, several.captions) == (("a",), ("a", None))
    assert one.read() == b"image"


def test_an_unreadable_image_is_a_problem_of_the_record(tmp_path) -> None:
    records = [record_of(f"row {n}", lambda: Inside(tmp_path).read("gone.png"), "a") for n in range(2)]
    assert {record.problem for record in records} == {f"missing image: no such file 'gone.png' in {tmp_path}"}
    assert len({record.key for record in records}) == 2


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_paths_outside_the_folder_are_rejected(tmp_path, name) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "in" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{re.escape(repr(name))} is outside"):
        Inside(tmp_path / "in").read(name)


def test_a_folder_is_not_an_image(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"missing image: 'a' in .*: Is a directory"):
        Inside(tmp_path).read("a")


def test_matching_sorts_files_and_names_a_bad_pattern(tmp_path) -> None:
    for name in ("b.tar", "a.tar", "c.txt", "in/d.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in matching(tmp_path, "*.tar")] == ["a.tar", "b.tar"]
    assert [path.name for path in matching(tmp_path, "**/*.tar")] == ["a.tar", "b.tar", "d.tar"]
    for pattern in ("*.parquet", "../*", "/x", ""):
        with pytest.raises(ValueError, match=r"`fetch.source.files`"):
            matching(tmp_path / "in", pattern or "*.none")
