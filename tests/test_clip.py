import torch
from PIL import Image

from t2i.clip import Clip


def test_features_are_unit_vectors_that_do_not_depend_on_the_batch(tiny_base) -> None:
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


def test_the_cosines_are_those_of_the_whole_model(tiny_base) -> None:
    clip = Clip(tiny_base / "clip", "cpu", 9)
    image, texts = Image.effect_noise((40, 40), 50).convert("RGB"), ["one", "two"]
    pixels = clip.processor(images=[image], return_tensors="pt").pixel_values
    with torch.no_grad():
        whole = clip.model(**clip.tokenizer(texts, padding=True, return_tensors="pt"), pixel_values=pixels)
    ours = clip.image_features([image]) @ clip.text_features(texts).T
    torch.testing.assert_close(ours * clip.model.logit_scale.exp(), whole.logits_per_image)
