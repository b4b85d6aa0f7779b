import pytest

from t2i.fetch_dataset import select, split_up
from t2i.records import Record


def record(name: str, *captions: object) -> Record:
    return Record(name, name, lambda: b"", "png", captions)  # type: ignore[arg-type]


RECORDS = [record(f"r{n}", "x") for n in range(300)]


def test_more_records_move_none_between_splits() -> None:
    few, many = (split_up(iter(RECORDS[:count]), 0.1) for count in (100, 300))
    for split in ("train", "heldout"):
        assert {r.key for r in few[split]} <= {r.key for r in many[split]}


def test_most_records_are_drawn_by_seed_and_sorted_by_key() -> None:
    first, again, other = (select(RECORDS, 20, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 20
    assert [r.key for r in first] == sorted(r.key for r in first)
    assert len(select(RECORDS, None, 0)) == 300


def test_records_of_one_image_become_one_with_every_caption() -> None:
    kept = split_up(iter([record("a", "one"), record("a", "two", "one")]), 0.1)
    assert [r.captions for records in kept.values() for r in records] == [("one", "two")]


@pytest.mark.parametrize("caption", ["", "  ", None, 3, {"text": "x"}])
def test_a_caption_that_is_no_text_names_its_record(caption) -> None:
    with pytest.raises(ValueError, match="record a: wanted a caption of text"):
        split_up(iter([record("a", caption)]), 0.1)


def test_a_caption_with_separators_that_are_no_newlines_survives(project) -> None:
    metadata = project.folder / "images" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("square 3", "square\u2028three\u0085!"), encoding="utf-8")
    project.fetch_and_encode()


def test_an_empty_split_is_an_error(project) -> None:
    from stages import fetch

    project.params["fetch"]["heldout_fraction"] = 1e-9
    project.write()
    with pytest.raises(ValueError, match=r"no record is left for the split 'heldout' \(train 24, held out 0\)"):
        fetch.dataset()
    assert not (project.folder / "data/raw").exists()
