import json
from typing import Any

from t2i.train.card import write_card


def test_the_card_states_licence_attribution_and_inputs(tmp_path) -> None:
    dataset: dict[str, Any] = {
        "source": "OpenMoji",
        "licence": "CC BY-SA 4.0",
        "attribution": "All emojis designed by OpenMoji",
    }
    dataset["records"] = {"heldout": 11, "train": 103}
    dataset["tags"] = {"a secret tag": 7}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    (tmp_path / "source.json").write_text(json.dumps({"source": "someone/base", "commit": "abc"}))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    write_card(tmp_path, tmp_path / "dataset.json", {"train": {"seed": 3}}, "fp16", (832, 1216))
    card = (tmp_path / "README.md").read_text()
    for fact in (
        "license: cc-by-sa-4.0",
        "All emojis designed by OpenMoji",
        "source: someone/base",
        "commit: abc",
        "records: 11 heldout, 103 train\n",
        '"seed": 3',
        "StableDiffusionXLPipeline.from_pretrained(",
        "height=832, width=1216",
        "use_safetensors=True, torch_dtype=torch.float16",
    ):
        assert fact in card
    assert "tag" not in card.partition("## Dataset")[2]
