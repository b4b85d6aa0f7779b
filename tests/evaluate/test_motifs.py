import pytest

from t2i.evaluate.motifs import in_captions, strange_to


@pytest.mark.parametrize(
    ("prompt", "caption", "there"),
    [
        ("red heart", "Red heart", True),
        ("a dog in the snow", "Photo of a dog in snow, at night", True),
        ("ring", "earring", False),
        ("cat face", "face of a cat", False),
        ("jack-o-lantern", "jack o lantern", True),
        ("an owl", "owls", False),
    ],
)
def test_a_motif_is_found_as_words_in_their_order(prompt, caption, there) -> None:
    assert in_captions([prompt], ["something else", caption]) == [prompt] * there


def test_prompts_without_a_common_word_are_strange() -> None:
    captions = ["a cat on a mat", "two dogs"]
    assert strange_to(["red heart", "a photo of a mat", "Dogs!"], captions) == ["red heart"]
