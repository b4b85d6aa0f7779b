import pytest

from t2i.fetch.source import content_key, matching, read_inside, record_of


def test_keys_are_short_and_of_the_content() -> None:
    assert content_key(b"a") != content_key(b"b")
    assert len(content_key(b"a")) == 16


def test_a_record_is_named_by_its_image_and_one_caption_is_a_list_of_one() -> None:
    one, several = record_of("row 1", lambda: b"image", "a"), record_of("row 2", lambda: b"image", ["a", None])
    assert one.key == several.key == one.identity == content_key(b"image")
    assert (one.captions, several.captions) == (("a",), ("a", None))
    assert one.read() == b"image"


def test_an_image_that_cannot_be_had_is_the_records_problem(tmp_path) -> None:
    records = [record_of(f"row {n}", lambda: read_inside(tmp_path, "gone.png"), "a") for n in range(2)]
    assert {record.problem for record in records} == {f"missing image: no such file 'gone.png' in {tmp_path}"}
    assert len({record.key for record in records}) == 2


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_no_name_leads_out_of_the_folder(tmp_path, name) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "in" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="leads out of"):
        read_inside(tmp_path / "in", name)


def test_a_folder_is_no_image(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"missing image: 'a' in .*: Is a directory"):
        read_inside(tmp_path, "a")


def test_files_are_sorted_and_a_pattern_that_fits_none_is_named(tmp_path) -> None:
    for name in ("b.tar", "a.tar", "c.txt", "in/d.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in matching(tmp_path, "*.tar")] == ["a.tar", "b.tar"]
    assert [path.name for path in matching(tmp_path, "**/*.tar")] == ["a.tar", "b.tar", "d.tar"]
    for pattern in ("*.parquet", "../*", "/x", ""):
        with pytest.raises(ValueError, match=r"`fetch.source.files`"):
            matching(tmp_path / "in", pattern or "*.none")
