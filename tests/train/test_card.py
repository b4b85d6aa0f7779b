from typing import Any

from PIL import Image

from t2i.model.adapter import Facts
from t2i.train.card import write_card


def test_the_card_states_licence_attribution_and_inputs(tmp_path) -> None:
    dataset: dict[str, Any] = {
        "source": "OpenMoji",
        "licence": "CC BY-SA 4.0",
        "attribution": "All emojis designed by OpenMoji",
    }
    dataset["records"] = {"heldout": 11, "train": 103}
    dataset["tags"] = {"a secret tag": 7}
    base = {"source": "someone/base", "commit": "abc"}
    facts = Facts(train={}, steps=1, images=103, size_px=(832, 1216), scheduler_changes={}, base=base, dataset=dataset)
    pictures = [(f"a | {number}", Image.new("RGB", (8, 8), (number, 0, 0))) for number in range(4)]
    write_card(tmp_path, "Load it so.", facts, {"train": {"seed": 3}}, pictures)
    card = (tmp_path / "README.md").read_text()
    for fact in (
        "license: cc-by-sa-4.0",
        "All emojis designed by OpenMoji",
        "source: someone/base",
        "commit: abc",
        "records: 11 heldout, 103 train\n",
        '"seed": 3',
        "Load it so.",
        "| ![](pictures/3.png) |\n| a \\| 3 |\n",
    ):
        assert fact in card
    assert Image.open(tmp_path / "pictures/2.png").getpixel((0, 0)) == (2, 0, 0)
    assert "tag" not in card.partition("## Dataset")[2]
