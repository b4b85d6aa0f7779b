import pytest

from t2i.fetch_dataset import Fetch, select
from t2i.params import load
from t2i.records import Record
from tests.conftest import ROOT


def record(name: str, *captions: object) -> Record:
    return Record(name, name, lambda: b"", "png", captions)  # type: ignore[arg-type]


def chosen(count: int, **changes) -> dict[str, list[str]]:
    params = load(ROOT / "params.yaml", "fetch", Fetch).model_copy(update={"max_train_records": None} | changes)
    return {
        split: [r.key for r in kept]
        for split, kept in select(iter([record(f"r{n}", "x") for n in range(count)]), params).items()
    }


def test_more_records_move_none_between_splits() -> None:
    few, many = chosen(100), chosen(300)
    for split in ("train", "heldout"):
        assert set(few[split]) <= set(many[split])


def test_most_records_are_drawn_by_seed_and_sorted_by_key() -> None:
    first, again, other = (
        chosen(300, max_train_records=20),
        chosen(300, max_train_records=20),
        chosen(300, max_train_records=20, seed=1),
    )
    assert first == again
    assert first["train"] != other["train"]
    assert len(first["train"]) == 20
    assert first["train"] == sorted(first["train"])


def test_records_of_one_image_become_one_with_every_caption() -> None:
    params = load(ROOT / "params.yaml", "fetch", Fetch)
    kept = select(iter([record("a", "one"), record("a", "two", "one")]), params)
    assert [r.captions for records in kept.values() for r in records] == [("one", "two")]


@pytest.mark.parametrize("caption", ["", "  ", None, 3, {"text": "x"}])
def test_a_caption_that_is_no_text_names_its_record(caption) -> None:
    with pytest.raises(ValueError, match="record a: wanted a caption of text"):
        select(iter([record("a", caption)]), load(ROOT / "params.yaml", "fetch", Fetch))


def test_an_empty_split_is_an_error(project) -> None:
    from stages import fetch

    project.params["fetch"]["heldout_fraction"] = 1e-9
    project.write()
    with pytest.raises(ValueError, match=r"no record is left for the split 'heldout' \(train 24, held out 0\)"):
        fetch.dataset()
    assert not (project.folder / "data/raw").exists()
