import pytest

from t2i.data.chance import hash_fraction
from t2i.data.records import REPEATS, read_captions, read_repeats, split_of


def test_the_split_depends_only_on_the_identity() -> None:
    identities = [f"record {n}" for n in range(4000)]
    heldout = {identity for identity in identities if split_of(identity, 0.1) == "heldout"}
    assert 0.08 < len(heldout) / len(identities) < 0.12
    assert heldout <= {identity for identity in identities if split_of(identity, 0.2) == "heldout"}


def test_the_split_is_independent_of_source_selection() -> None:
    low = [f"record {n}" for n in range(4000) if hash_fraction(f"record {n}") < 0.1]
    assert 0.03 < sum(split_of(identity, 0.1) == "heldout" for identity in low) / len(low) < 0.2


def test_a_line_without_repeats_is_used_once(tmp_path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(
        '{"key": "a", "split": "train", "captions": ["x"]}\n{"key": "b", "split": "train", "captions": ["x"], "repeats": 7}\n'
    )
    assert [row["repeats"] for row in read_captions(path)] == [1, 7]


@pytest.mark.parametrize("repeats", ["0", "-1", "1.5", "true", "null", '"3"'])
def test_repeats_are_whole_numbers_from_1(tmp_path, repeats) -> None:
    (tmp_path / "captions.jsonl").write_text(f'{{"key": "a", "split": "train", "captions": ["x"], "repeats": {repeats}}}\n')
    with pytest.raises(ValueError, match=r"captions.jsonl, line 1: damaged .*`fetch dataset`"):
        list(read_captions(tmp_path / "captions.jsonl"))
    (tmp_path / REPEATS).write_text(f'{{"a": {repeats}}}')
    with pytest.raises(ValueError, match=r"repeats.json: damaged .*`encode captions` again"):
        read_repeats(tmp_path)


def test_embeddings_without_a_file_of_repeats_have_none(tmp_path) -> None:
    assert read_repeats(tmp_path) == {}
    for content in ("", "[]", "3"):
        (tmp_path / REPEATS).write_text(content)
        with pytest.raises(ValueError, match=r"repeats.json: damaged"):
            read_repeats(tmp_path)
