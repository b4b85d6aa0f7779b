"""Captions in text files beside the images, and the folders of kohya, through the source `folder`."""

import codecs
import csv
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i.core.params import ParamsError, check
from t2i.fetch.screening import checked_captions
from t2i.fetch.source import Record
from t2i.fetch.sources import folder
from t2i.fetch.watched import UNSEEN
from tests import tiny
from tests.projects import Project


def write(local: Path, content: Mapping[str, str | bytes]) -> Path:
    for name, text in content.items():
        path = local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return local


def records(local: Path, kind: str = "sidecar", extensions: tuple[str, ...] = ("txt", "caption")) -> dict[str, Record]:
    """Returns what the source finds in a folder, by the path in it."""
    source = {"name": "folder", "captions": {"name": kind, "extensions": list(extensions)}}
    dataset = folder.open_source(check(folder.Source, source, "fetch.source"), local)
    assert json.dumps(dataset.description)
    found = {record.place.removeprefix(f"{local}/"): record for record in dataset.records}
    assert dataset.unnamed == []
    return found


def captions(found: dict[str, Record]) -> dict[str, Any]:
    """Returns the captions of each record, or its problem."""
    return {name: record.problem or record.captions for name, record in found.items()}


def test_each_line_that_is_not_blank_is_a_caption(tmp_path) -> None:
    write(
        tmp_path, {"one/a.png": b"a", "one/a.txt": " red, round \r\n\n \u200b\nsecond\rthird", "b.png": b"b", "b.caption": "x"}
    )
    found = records(tmp_path)
    assert captions(found) == {"b.png": ("x",), "one/a.png": ("red, round", "second", "third")}
    assert [record.read() for record in found.values()] == [b"b", b"a"]
    assert {record.repeats for record in found.values()} == {1}


def test_names_may_have_dots_and_upper_case_extensions(tmp_path) -> None:
    write(tmp_path, {"IMG_v1.00.png": b"1", "IMG_v1.00.txt": "one", "IMG_v1.01.JPG": b"2", "IMG_v1.01.TXT": "two"})
    assert captions(records(tmp_path)) == {"IMG_v1.00.png": ("one",), "IMG_v1.01.JPG": ("two",)}
    write(tmp_path, {"IMG_v1.00.wd14.txt": "tags"})
    found = captions(records(tmp_path, extensions=(".wd14.TXT",)))
    assert found["IMG_v1.00.png"] == ("tags",)
    assert captions(records(tmp_path, extensions=("txt", "wd14.txt")))["IMG_v1.00.png"].startswith("two caption files: ")
    assert found["IMG_v1.01.JPG"].startswith("no caption: no IMG_v1.01.wd14.txt beside the image")


def test_a_byte_order_mark_is_removed_and_utf_16_refused(tmp_path) -> None:
    write(tmp_path, {"a.png": b"a", "a.txt": codecs.BOM_UTF8 + "caf\u00e9".encode()})
    write(tmp_path, {"b.png": b"b", "b.txt": "caf\u00e9".encode("utf-16"), "c.png": b"c", "c.txt": "text".encode("utf-16-le")})
    write(tmp_path, {"d.png": b"d", "d.txt": b"caf\xe9"})
    found = records(tmp_path)
    assert found["a.png"].captions == ("caf\u00e9",)
    for name in ("b", "c"):
        problem = found[f"{name}.png"].problem or ""
        assert problem.startswith(f"caption is not UTF-8: {name}.txt: text in UTF-16")
    with pytest.raises(ValueError, match="caption is not valid Unicode"):
        checked_captions(found["d.png"].captions)


@pytest.mark.parametrize(
    ("files", "problems"),
    [
        ({"a.png": b"a"}, {"a.png": "no caption: no a.txt or a.caption beside the image (`fetch.source.captions.extensions`)"}),
        ({"a.png": b"a", "a.txt": ""}, {"a.png": "no caption: a.txt is empty"}),
        ({"a.png": b"a", "a.txt": "\ufeff\n \u200b\n"}, {"a.png": "no caption: a.txt is blank"}),
        ({"a.txt": "x"}, {"a.txt": "missing image: no image of this name beside the caption file"}),
        (
            {"a.png": b"a", "a.txt": "x", "a.caption": "y"},
            {
                "a.png": "two caption files: a.caption and a.txt; remove one, or its extension from "
                "`fetch.source.captions.extensions`"
            },
        ),
        (
            {"a.png": b"a", "a.jpg": b"b", "a.txt": "x"},
            dict.fromkeys(
                ("a.jpg", "a.png"), "two images for one caption file: a.jpg and a.png for a.txt; rename one, or remove it"
            ),
        ),
    ],
    ids=["missing", "empty", "blank", "no image", "two texts", "two images"],
)
def test_what_does_not_pair_is_a_problem_of_its_file(tmp_path, files, problems) -> None:
    write(tmp_path, files | {"good.png": b"good", "good.txt": "good"})
    assert captions(records(tmp_path)) == problems | {"good.png": ("good",)}


def test_a_caption_file_that_cannot_be_read_is_named(tmp_path) -> None:
    write(tmp_path, {"a.png": b"a", "a.txt": "x", "b.png": b"b", "b.txt": "x"})
    source = folder.Source.model_validate({"name": "folder", "captions": {"name": "sidecar", "extensions": ["txt"]}})
    dataset = folder.open_source(source, tmp_path)
    (tmp_path / "b.txt").unlink()
    found = {Path(record.place).name: record.problem for record in dataset.records}
    assert found == {"a.png": None, "b.png": "no caption: b.txt: No such file or directory"}


def test_hidden_files_and_what_dvc_ignores_are_left_out(tmp_path) -> None:
    write(
        tmp_path,
        {
            "a.png": b"a",
            "a.txt": "x",
            "._a.png": b"?",
            "._a.txt": "?",
            ".txt": "?",
            ".thumbs/a.png": b"?",
            "notes.md": "?",
            "b.json": "{}",
        },
    )
    write(tmp_path, {f"{UNSEEN[0]}/b.png": b"b", f"{UNSEEN[0]}/c.txt": "c"})
    (tmp_path / "linked.png").symlink_to("a.png")
    (tmp_path / "linked.txt").symlink_to("a.txt")
    assert captions(records(tmp_path)) == {"a.png": ("x",), "linked.png": ("x",)}


def test_a_folder_without_caption_files_is_refused(tmp_path) -> None:
    write(tmp_path, {"photos/a.png": b"a", "photos/b.txt": "x"})
    with pytest.raises(ValueError, match=r"no image has a caption file .* photos/0001.caption \(`fetch.source.captions`\)$"):
        records(tmp_path, extensions=("caption",))
    with pytest.raises(ValueError, match=r"no image in a folder such as `10_sks dog`.*\(`fetch.source.captions`\)$"):
        records(tmp_path, "kohya")


@pytest.mark.parametrize(
    ("kind", "files", "form"),
    [
        ("sidecar", {"metadata.csv": "file_name,text\n", "a.png": b"a"}, "{name: metadata, column: text}"),
        ("sidecar", {"10_dog/a.png": b"a"}, "{name: kohya, extensions: [txt]}"),
        ("kohya", {"dog/a.png": b"a", "dog/a.txt": "a dog"}, "{name: sidecar, extensions: [txt]}"),
        ("kohya", {"dog/a.png": b"a", "metadata.jsonl": ""}, "{name: metadata, column: text}"),
    ],
)
def test_captions_of_another_kind_are_pointed_at(tmp_path, kind, files, form) -> None:
    with pytest.raises(ValueError, match=rf"`fetch.source.captions`\).* set it to {re.escape(form)}$"):
        records(write(tmp_path, files), kind, ("txt",))


NAMES = st.sampled_from(["a", "a.b", "in/a", "in/b", "2_in/a", ".a"])
ENDS = st.sampled_from(["png", "PNG", "jpg", "txt", "TXT", "caption", "b.txt", "md"])


@given(st.sets(st.tuples(NAMES, ENDS)), st.sampled_from(["sidecar", "kohya"]))
def test_every_image_and_every_lone_text_is_one_record(chosen, kind) -> None:
    names = {f"{name}.{end}" for name, end in chosen} | {"1_good/good.png", "1_good/good.txt"}
    with tempfile.TemporaryDirectory() as local:
        found = records(write(Path(local), dict.fromkeys(names, "x")), kind)
    shown = {name for name in names if not name.startswith(".")}
    images = {name for name in shown if name.lower().endswith(("png", "jpg"))}
    texts = {name for name in shown if name.lower().endswith(("txt", "caption"))}
    stems = {name.rpartition(".")[0] for name in images}
    assert found.keys() == images | {name for name in texts if name.rpartition(".")[0] not in stems}
    for name, record in found.items():
        own = [text for text in texts if text.rpartition(".")[0] == name.rpartition(".")[0]]
        alone = sum(image.rpartition(".")[0] == name.rpartition(".")[0] for image in images) == 1
        if record.problem is None:
            assert record.captions == (("x",) if own else ("in",))
        assert (record.problem is None) == (
            name in images and ((len(own) == 1 and alone) or (not own and kind == "kohya" and name.startswith("2_")))
        )


def test_an_experiment_without_caption_files_says_dvc_add(tmp_path, monkeypatch) -> None:
    (tmp_path / ".dvc/tmp/exps/one/local").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / ".dvc/tmp/exps/one")
    for kind in ("sidecar", "kohya"):
        with pytest.raises(ValueError, match=r"neither git nor DVC tracks them: `dvc add` them there"):
            records(Path("local"), kind)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            {"caption_column": "said"},
            "`fetch.source`: instead of `caption_column: 'said'`, write `captions: {name: metadata, column: 'said'}`",
        ),
        ({"captions": {"name": "sidecar", "extensions": []}}, "`fetch.source.captions.extensions`: .*at least 1"),
        ({"captions": {"name": "sidecar", "extensions": ["*"]}}, r"`fetch.source.captions.extensions`: got '\*', wanted"),
        ({"captions": {"name": "sidecar", "extensions": ["PNG"]}}, "got 'png', the extension of an image"),
        ({"captions": {"name": "sidecars", "extensions": ["txt"]}}, "`fetch.source.captions.*'metadata', 'sidecar'"),
    ],
    ids=["the old form", "none", "a pattern", "an image", "another name"],
)
def test_a_wrong_section_says_what_to_write(source, said) -> None:
    with pytest.raises(ParamsError, match=said):
        check(folder.Source, {"name": "folder"} | source, "fetch.source")


KOHYA = {
    "10_sks dog/a.png": b"a",
    "10_sks dog/b.png": b"b",
    "10_sks dog/b.txt": "a dog, sitting\nanother line",
    "10_sks dog/more/c.png": b"c",
    "10_sks dog/2_wet dog/w.png": b"w",
    "3_toy_car/d.jpg": b"d of another format",
    "3_toy_car/d.png": b"d",
    "others/e.png": b"e",
    "others/e.txt": "no folder of kohya",
    "others/f.png": b"f",
}


def test_folders_of_kohya_give_repeats_and_captions(tmp_path) -> None:
    found = records(write(tmp_path, KOHYA), "kohya")
    assert found.pop("others/f.png").problem == (
        "no caption: no f.txt or f.caption beside the image (`fetch.source.captions.extensions`)"
    )
    assert {name: (record.repeats, record.captions) for name, record in found.items()} == {
        "10_sks dog/a.png": (10, ("sks dog",)),
        "10_sks dog/b.png": (10, ("a dog, sitting", "another line")),
        "10_sks dog/more/c.png": (10, ("sks dog",)),
        "10_sks dog/2_wet dog/w.png": (2, ("wet dog",)),
        "3_toy_car/d.jpg": (3, ("toy_car",)),
        "3_toy_car/d.png": (3, ("toy_car",)),
        "others/e.png": (1, ("no folder of kohya",)),
    }


def test_a_numbered_folder_means_nothing_to_sidecar(tmp_path) -> None:
    write(tmp_path, {"2024_holiday/a.png": b"a", "2024_holiday/a.txt": "x", "2024_holiday/b.png": b"b"})
    found = records(tmp_path)
    assert found["2024_holiday/a.png"].repeats == 1
    assert (found["2024_holiday/b.png"].problem or "").startswith("no caption: no b.txt or b.caption beside the image")


@pytest.mark.parametrize("number", ["0", "10001", "9" * 200])
def test_absurd_repeats_are_a_problem_of_each_image(tmp_path, number) -> None:
    found = records(write(tmp_path, {f"{number}_dog/a.png": b"a", "1_dog/b.png": b"b"}), "kohya")
    assert (found[f"{number}_dog/a.png"].problem or "").startswith(
        f"wrong repeats: folder '{number}_dog' says {number}, wanted 1 to"
    )
    assert found["1_dog/b.png"].problem is None


def test_a_folder_of_kohya_itself_is_not_fetch_local(tmp_path) -> None:
    write(tmp_path, {"10_sks dog/a.png": b"a"})
    with pytest.raises(ValueError, match=r"; `fetch.local` is the folder above it$"):
        records(tmp_path / "10_sks dog", "kohya")


@pytest.fixture
def kohya(project: Project) -> Project:
    """A project whose 24 images have files with captions, the last twelve in a folder that repeats them three times."""
    tiny.write_kohya_folders(project.folder / "images")
    project.params["fetch"]["source"] = {"name": "folder", "captions": {"name": "kohya", "extensions": ["txt"]}}
    project.write()
    return project


def rows(project: Project) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project.folder / "data/raw/captions.jsonl").read_text().splitlines()]


def test_captions_jsonl_has_repeats_of_training_records_only(kohya, capsys) -> None:
    from stages import fetch

    fetch.dataset()
    repeated = {f"square {n}" for n in range(12, 24)}
    heldout = [row for row in rows(kohya) if row["split"] == "heldout"]
    assert any(row["captions"][0] in repeated for row in heldout)
    for row in rows(kohya):
        assert row.get("repeats") == (3 if row["split"] == "train" and row["captions"][0] in repeated else None)
    images = sum(row.get("repeats", 1) for row in rows(kohya) if row["split"] == "train")
    assert f"an epoch of training has {images} images" in capsys.readouterr().out


@pytest.mark.parametrize(("first", "second", "largest"), [("2_a", "5_b", 5), ("10_a", "2_b", 10)])
def test_copies_of_an_image_have_the_largest_of_their_repeats(project, first, second, largest) -> None:
    from stages import fetch

    images = project.folder / "images"
    for name in (first, second):
        (images / name).mkdir()
        for n in range(24):
            (images / name / f"{n}.png").write_bytes((images / f"{n:04d}.png").read_bytes())
    tiny.write_sidecars(images)
    project.params["fetch"]["source"] = {"name": "folder", "captions": {"name": "kohya", "extensions": ["txt"]}}
    project.write()
    fetch.dataset()
    assert {row.get("repeats") for row in rows(project) if row["split"] == "train"} == {largest}
    assert all(row["captions"][1:] == ["a", "b"] for row in rows(project))
    assert project.json("data/reports/fetch-dataset/metrics.json")["merged"] == 48


def test_what_sidecars_lack_is_skipped_listed_and_counted(project) -> None:
    from stages import fetch

    images = project.folder / "images"
    tiny.write_sidecars(images)
    (images / "0002.txt").unlink()
    (images / "0003.txt").write_text("")
    (images / "0004.png").unlink()
    (images / "0005.caption").write_text("x")
    (images / "copy.png").write_bytes((images / "0006.png").read_bytes())
    (images / "copy.txt").write_text("copy")
    project.params["fetch"]["source"] = {"name": "folder", "captions": {"name": "sidecar", "extensions": ["txt", "caption"]}}
    project.write()
    with pytest.raises(ValueError, match=rf"^{images}/0002.png: no caption: no 0002.txt .*`fetch.on_bad: skip`"):
        fetch.dataset()
    project.params["fetch"] |= {"on_bad": "skip", "max_bad_fraction": 0.5, "max_train_records": 9}
    project.write()
    fetch.dataset()
    metrics = project.json("data/reports/fetch-dataset/metrics.json")
    assert metrics["found"] == 25
    assert metrics["found"] == sum(metrics["records"].values()) + sum(
        metrics[name] for name in ("skipped", "merged", "unnamed", "over_limit")
    )
    listed = list(csv.DictReader((project.folder / "data/raw/skipped.csv").open(encoding="utf-8")))
    assert metrics["skipped"] == sum(metrics["skipped_by_kind"].values()) == len(listed) - metrics["merged"]
    assert {row["record"] for row in listed} <= {
        f"{images}/{name}" for name in (*(f"000{n}.png" for n in (2, 3, 5)), "0004.txt", "copy.png")
    }
