import contextlib
import json
import shutil

import torch
from PIL import Image

from t2i.evaluate.clip import Clip


def test_features_are_unit_vectors_and_independent_of_batch_size(tiny_base) -> None:
    images = [Image.effect_noise((40, 40), 50).convert("RGB") for _ in range(5)]
    texts = ["a square", "a much longer text than this tokenizer lets through, so it is cut", "b"]
    for features in (
        Clip(tiny_base / "clip", "cpu", 2).image_features(images),
        Clip(tiny_base / "clip", "cpu", 2).text_features(texts),
    ):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    clip = Clip(tiny_base / "clip", "cpu", 99)
    torch.testing.assert_close(clip.image_features(images), Clip(tiny_base / "clip", "cpu", 2).image_features(images))
    torch.testing.assert_close(clip.text_features(texts), Clip(tiny_base / "clip", "cpu", 1).text_features(texts))


def test_code_that_comes_with_a_tokenizer_is_not_run(tiny_base, tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(tiny_base / "clip", tmp_path / "clip")
    auto_map = {"AutoTokenizer": ["foreign.Foreign", "foreign.Foreign"], "AutoConfig": "foreign.Foreign"}
    for name, changes in (("tokenizer_config", {"tokenizer_class": "Foreign"}), ("config", {"model_type": "foreign"})):
        config = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").write_text(json.dumps(config | changes | {"auto_map": auto_map}))
    (folder / "foreign.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import CLIPTokenizer as Foreign\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with contextlib.suppress(ValueError):
        Clip(folder, "cpu", 1)
    assert not (tmp_path / "ran").exists()


def test_cosines_equal_those_of_the_full_clip_model(tiny_base) -> None:
    clip = Clip(tiny_base / "clip", "cpu", 9)
    image, texts = Image.effect_noise((40, 40), 50).convert("RGB"), ["one", "two"]
    pixels = clip.processor(images=[image], return_tensors="pt").pixel_values
    with torch.no_grad():
        whole = clip.model(**clip.tokenizer(texts, padding=True, return_tensors="pt"), pixel_values=pixels)
    ours = clip.image_features([image]) @ clip.text_features(texts).T
    torch.testing.assert_close(ours * clip.model.logit_scale.exp(), whole.logits_per_image)
