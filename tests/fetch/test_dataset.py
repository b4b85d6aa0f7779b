import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from t2i.data.records import SPLITS
from t2i.fetch.dataset import Fetch, gather
from t2i.fetch.metadata import Metadata
from t2i.fetch.screening import Screen
from t2i.fetch.selection import Selection
from t2i.fetch.source import Record
from t2i.fetch.sources import folder
from tests.images import encoded, many_scans
from tests.projects import ROOT


def drawing(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def record(name: str, *captions: object, content: bytes | None = None) -> Record:
    return Record(f"line {name}", name, name, lambda: drawing() if content is None else content, captions)


def gathered(records: list[Record], **changes) -> tuple[dict[str, Selection], Screen, bytes]:
    values = {
        "source": {"name": "folder", "captions": {"name": "metadata", "column": "text"}},
        "local": ".",
        "on_bad": "skip",
        "max_bad_fraction": 1.0,
        "max_pixels": 1000,
        "min_side_px": 8,
        "max_decode_seconds": 30.0,
        "heldout_fraction": 0.1,
        "max_train_records": None,
        "max_heldout_records": None,
        "records_per_shard": 8,
        "seed": 0,
    }
    params = Fetch(**(values | changes))
    selections = {
        "train": Selection(params.max_train_records, params.seed),
        "heldout": Selection(params.max_heldout_records, params.seed),
    }
    screen = Screen(params.on_bad, params.max_bad_fraction)
    with tempfile.TemporaryFile() as spool:
        gather(iter(records), params, selections, screen, spool)
        spool.seek(0)
        return selections, screen, spool.read()


RECORDS = [record(f"r{n}", "x") for n in range(300)]


def test_adding_records_moves_none_between_splits() -> None:
    few, many = (gathered(RECORDS[:count])[0] for count in (100, 300))
    for split in SPLITS:
        assert few[split].kept.keys() <= many[split].kept.keys()


def test_records_with_the_same_image_are_merged() -> None:
    selections, screen, _ = gathered([record("a", "one"), record("a", "two", "one")])
    assert [kept.captions for selection in selections.values() for kept in selection.in_order()] == [("one", "two")]
    assert (screen.found, screen.merged) == (2, [("line a", "merged: same image as line a")])


def test_the_spool_has_each_image_at_its_offset() -> None:
    contents = {f"r{n}": drawing(n) for n in range(5)}
    selections, _, spool = gathered([record(name, "x", content=content) for name, content in contents.items()])
    kept = [record for selection in selections.values() for record in selection.in_order()]
    assert {record.key: spool[record.offset : record.offset + record.size] for record in kept} == contents
    assert {record.extension for record in kept} == {"png"}


def test_only_drawn_images_are_read_and_only_once() -> None:
    now, read = [""], []

    def reading(name: str) -> Record:
        def content() -> bytes:
            assert now[0] == name
            read.append(name)
            return drawing()

        return Record(name, name, name, content, ("x",))

    def records() -> Iterator[Record]:
        for name in [f"r{n}" for n in range(300)] * 2:
            now[0] = name
            yield reading(name)

    selections, screen, _ = gathered(records(), max_train_records=5, max_heldout_records=2)  # type: ignore[arg-type]
    assert len(read) == len(set(read)) < 60
    assert [len(selection.kept) for selection in selections.values()] == [5, 2]
    assert not screen.skipped


def test_a_bad_drawn_record_is_replaced_by_the_next() -> None:
    good, _, _ = gathered(RECORDS, max_train_records=5)
    bad = set(list(good["train"].kept)[:2])
    records = [record(r.key, "x", content=b"") if r.key in bad else r for r in RECORDS]
    selections, screen, _ = gathered(records, max_train_records=5)
    assert len(selections["train"].kept) == 5
    assert good["train"].kept.keys() - bad <= selections["train"].kept.keys()
    assert bad <= {place.removeprefix("line ") for place, _ in screen.skipped}


def test_bad_records_are_left_out_with_their_reason() -> None:
    problem = Record("line p", "p", "p", bytes, (), "missing image: gone")
    records = [
        record("a", "fine"),
        record("b", None),
        record("c", "x", content=b""),
        record("d", "x", content=b"<svg/>"),
        problem,
        record("a", " "),
    ]
    selections, screen, _ = gathered(records)
    assert [kept.key for selection in selections.values() for kept in selection.in_order()] == ["a"]
    assert [(place, reason.partition(":")[0]) for place, reason in screen.skipped] == [
        ("line b", "null caption"),
        ("line c", "empty image"),
        ("line d", "not a readable image"),
        ("line p", "missing image"),
        ("line a", "blank caption"),
    ]
    assert screen.checked == 6


def test_an_image_that_decodes_too_slowly_is_left_out() -> None:
    records = [record("a", "x", content=many_scans((1000, 1000), 20_000)), record("b", "x")]
    selections, screen, _ = gathered(records, max_decode_seconds=0.2, max_pixels=1_000_000)
    assert [kept.key for selection in selections.values() for kept in selection.in_order()] == ["b"]
    assert screen.kinds() == {"image too slow to decode": 1}


@pytest.mark.parametrize("caption", ["", "  ", None, 3, {"text": "x"}, float("nan"), "a\0"])
def test_a_caption_that_is_not_text_names_its_record(caption) -> None:
    with pytest.raises(ValueError, match=r"^line a: .*caption.*`fetch.on_bad: skip`"):
        gathered([record("a", caption)], on_bad="error")


def test_unicode_line_separators_in_captions_are_kept(project) -> None:
    metadata = project.folder / "images" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("square 3", "square\u2028three\u0085!"), encoding="utf-8")
    project.fetch_and_encode()


def test_any_caption_is_left_out_or_encoded(project) -> None:
    from stages import encode, fetch

    bad = [None, float("nan"), 3, {"text": "a"}, [], [["a"]], "", [" \t\u2003\n"], "a\0b", "a \ud800 b", ["a", None], True]
    good = ["a" * 10_000, "\U0001f600", "\u05e9\u05dc\u05d5\u05dd", "two\nlines\r\n", "[red]{0}%s", "a\u2028b", ["one", "two"]]
    captions = [*bad, *good, *(f"square {n}" for n in range(24 - len(bad) - len(good)))]
    rows = [json.dumps({"file_name": f"{n:04d}.png", "text": caption}) for n, caption in enumerate(captions)]
    (project.folder / "images/metadata.jsonl").write_text("\n".join(rows))
    project.params["fetch"] |= {"on_bad": "skip", "max_bad_fraction": 0.5}
    project.write()
    fetch.base()
    fetch.dataset()
    metrics = project.json("data/reports/fetch-dataset/metrics.json")
    assert metrics["skipped_by_kind"] == {
        "null caption": 2,
        "caption is not text": 5,
        "no caption": 1,
        "blank caption": 2,
        "caption has a NUL character": 1,
        "caption is not valid Unicode": 1,
    }
    kept = [json.loads(line)["captions"] for line in (project.folder / "data/raw/captions.jsonl").open(encoding="utf-8")]
    wanted = [caption if isinstance(caption, list) else [caption] for caption in captions[len(bad) :]]
    assert sorted(kept) == sorted(wanted)
    encode.captions()
    encoded = project.json("data/reports/encode-captions/metrics.json")
    assert encoded == {"records": 12, "captions": 13, "truncated": 1}


@pytest.mark.slow
def test_file_names_are_printed_as_one_line_of_ascii(project) -> None:
    images = project.folder / "images"
    name = b"caf\xe9 [red]\x1b[31m\xc3\xa9.png"
    (images / "0003.png").rename(os.fsdecode(bytes(images) + b"/" + name))
    Path(os.fsdecode(bytes(images) + b"/" + name)).write_bytes(b"")
    metadata = images / "metadata.jsonl"
    metadata.write_bytes(metadata.read_bytes().replace(b"0003.png", name.replace(b"\x1b", b"\\u001b")))
    shown = f"{images}/metadata.jsonl, line 4 (caf\\udce9 [red]\\x1b[31m\\xe9.png)"
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.fetch", "dataset", "--out", "raw \u00e9"]
    ended = [subprocess.run(command, cwd=project.folder, env=environment, capture_output=True)]
    project.params["fetch"] |= {"on_bad": "skip", "max_bad_fraction": 0.5}
    project.write()
    ended.append(subprocess.run(command, cwd=project.folder, env=environment, capture_output=True))
    refused, skipped = ended
    assert refused.returncode == 1
    last = refused.stderr.decode("ascii").splitlines()[-1]
    assert last.startswith(f"error: {shown}: empty image: no bytes; ")
    assert skipped.returncode == 0, skipped.stderr
    (left_out,) = (line for line in skipped.stdout.decode("ascii").splitlines() if line.startswith("left out: 1 empty image"))
    assert "raw \\xe9/skipped.csv" in left_out
    rows = list(csv.DictReader((project.folder / "raw \u00e9/skipped.csv").open(encoding="utf-8", newline="")))
    assert rows == [
        {"record": f"{images}/metadata.jsonl, line 4 (caf\\udce9 [red]\x1b[31m\u00e9.png)", "reason": "empty image: no bytes"}
    ]


def test_an_empty_split_is_an_error(project) -> None:
    from stages import fetch

    project.params["fetch"]["heldout_fraction"] = 1e-9
    project.write()
    with pytest.raises(ValueError, match=r"'heldout' .*\(train 24, held out 0\): .*`fetch.heldout_fraction`"):
        fetch.dataset()
    assert not list((project.folder / "data").iterdir())


def spoil(project) -> None:
    """Adds an empty image, an HTML page, a decompression bomb and a blank caption to the 24 records."""
    images = project.folder / "images"
    (images / "0003.png").write_bytes(b"")
    (images / "0005.png").write_bytes(b"<html>404</html>")
    Image.new("1", (9000, 9000)).save(images / "0007.png")
    metadata = images / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"square 9"', '" "'))


def test_on_bad_error_stops_at_the_first_bad_record(project) -> None:
    from stages import fetch

    spoil(project)
    project.write()
    with pytest.raises(ValueError, match=rf"^{project.folder}/images/metadata.jsonl, line 4 \(0003.png\): empty image"):
        fetch.dataset()
    assert not list((project.folder / "data").iterdir())


def test_on_bad_skip_lists_and_counts_bad_records(project, capsys) -> None:
    spoil(project)
    project.params["fetch"] |= {"on_bad": "skip", "max_bad_fraction": 4 / 24}
    project.write()
    project.fetch_and_encode()
    raw = project.folder / "data/raw"
    listed = list(csv.DictReader((raw / "skipped.csv").open(encoding="utf-8")))
    assert [row["record"] for row in listed] == [
        f"{project.folder}/images/metadata.jsonl, line {n} (000{n - 1}.png)" for n in (4, 6, 8, 10)
    ]
    metrics = project.json("data/reports/fetch-dataset/metrics.json")
    kinds = {"empty image": 1, "not a readable image": 1, "image too large": 1, "blank caption": 1}
    assert (metrics["skipped"], metrics["skipped_by_kind"]) == (4, kinds)
    kept = Counter(json.loads(line)["split"] for line in (raw / "captions.jsonl").read_text().splitlines())
    assert metrics["records"] == kept
    assert metrics["found"] == 24
    assert project.json("data/reports/encode-images/metrics.json")["records"] == 20
    assert "left out: 1 empty image, 1 not a readable image" in capsys.readouterr().out
    project.train()


def test_too_many_bad_records_are_an_error_with_counts(project) -> None:
    from stages import fetch

    spoil(project)
    project.params["fetch"] |= {"on_bad": "skip", "max_bad_fraction": 0.1}
    project.write()
    with pytest.raises(ValueError, match=r"4 of 24 .*1 empty image.* 0.1: .*`fetch.max_bad_fraction`"):
        fetch.dataset()
    assert not list((project.folder / "data").iterdir())


def test_images_of_every_format_are_encoded(project) -> None:
    images = project.folder / "images"
    for number, form in enumerate(("JPEG", "WEBP", "GIF", "TIFF", "BMP")):  # the content decides the format, not the name
        Image.new("RGB", (40, 32), (9, 40 * number, 9)).save(images / f"{number:04d}.png", form)
    project.fetch_and_encode()
    assert (project.folder / "data/raw/skipped.csv").read_text() == "record,reason\n"
    metrics = project.json("data/reports/fetch-dataset/metrics.json")
    assert (metrics["skipped"], metrics["skipped_by_kind"], metrics["records"]) == (0, {}, {"train": 17, "heldout": 7})
    extensions = set()
    for shard in (project.folder / "data/raw/images").glob("*.tar"):
        with tarfile.open(shard) as tar:
            extensions |= {name.partition(".")[2] for name in tar.getnames()}
    assert extensions == {"png", "jpg", "webp", "gif", "tif", "bmp"}


def test_every_source_writes_the_same_bytes(project) -> None:
    import pyarrow
    import pyarrow.parquet

    from stages import fetch

    images = project.folder / "images"
    rows = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    others = project.folder / "others"
    others.mkdir()
    cells = [{"image": (images / row["file_name"]).read_bytes(), "text": row["text"]} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(cells), others / "a.parquet")
    with tarfile.open(others / "a.tar", "w") as tar:
        for n, cell in enumerate(cells):
            for extension, content in (("png", cell["image"]), ("json", json.dumps({"said": [cell["text"]]}).encode())):
                info = tarfile.TarInfo(f"{n}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    hub = {"name": "hub", "id": None, "config": None, "split": "train", "revision": None, "max_rows": None}
    hub |= {"image_column": "image", "caption_column": "text"}
    sources = [
        (images, {"name": "folder", "captions": {"name": "metadata", "column": "text"}}),
        (others, {"name": "parquet", "files": "*.parquet", "image_column": "image", "caption_column": "text"}),
        (
            others,
            {
                "name": "webdataset",
                "files": "*.tar",
                "image_extensions": ["png"],
                "caption": {"name": "json", "key": "said"},
            },
        ),
        (images, hub | {"streaming": True}),
    ]
    left = []
    for number, (local, source) in enumerate(sources):
        project.params["fetch"] |= {"source": source, "local": str(local), "max_train_records": 9}
        project.write()
        fetch.dataset(out=project.folder / f"raw{number}")
        raw = project.folder / f"raw{number}"
        left.append(
            {
                str(file.relative_to(raw)): file.read_bytes()
                for file in raw.rglob("*")
                if file.name != "dataset.json" and file.is_file()
            }
        )
    assert len(left[0]["captions.jsonl"].splitlines()) > 9
    assert all(files == left[0] for files in left)


def local_source(kind: str) -> dict[str, Any]:
    """Returns `fetch.source` for a kind of local data."""
    hub = {"id": None, "config": None, "split": "train", "revision": None, "streaming": False, "max_rows": None}
    columns = {"image_column": "image", "caption_column": "text"}
    sources: dict[str, dict[str, Any]] = {
        "folder": {"name": "folder", "captions": {"name": "metadata", "column": "text"}},
        "parquet": {"name": "parquet", "files": "*.parquet"} | columns,
        "webdataset": {"name": "webdataset", "files": "*.tar", "image_extensions": ["png"], "caption": {"name": "txt"}},
        "hub": {"name": "hub"} | hub | columns,
        "hub of parquet": {"name": "hub"} | hub | columns,
    }
    return sources[kind]


def write_words(folder: Path, kind: str, word: str) -> None:
    """Writes 12 images with captions of one word; names, sizes and times are the same for words of the same length."""
    shutil.rmtree(folder)
    folder.mkdir()
    images = [encoded(Image.new("RGB", (40, 32), (n * 20, len(word) + ord(word[0]), 9))) for n in range(12)]
    if kind in ("parquet", "hub of parquet"):
        struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        cells = pyarrow.array([{"bytes": image, "path": None} for image in images], struct)
        table = pyarrow.table({"image": cells, "text": [f"{word} {n}" for n in range(12)]})
        pyarrow.parquet.write_table(table, folder / "a.parquet", compression="none")
    elif kind == "webdataset":
        with tarfile.open(folder / "a.tar", "w") as tar:
            for n, image in enumerate(images):
                for end, content in (("png", image), ("txt", f"{word} {n}".encode())):
                    info = tarfile.TarInfo(f"{n:02d}.{end}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    else:
        for n, image in enumerate(images):
            (folder / f"{n:02d}.png").write_bytes(image)
        lines = [json.dumps({"file_name": f"{n:02d}.png", "text": f"{word} {n}"}) + "\n" for n in range(12)]
        (folder / "metadata.jsonl").write_text("".join(lines))
    for path in folder.iterdir():
        os.utime(path, (315532800, 315532800))  # 1980-01-01, as reproducible archives unpack


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset", "hub", "hub of parquet"])
def test_content_of_the_same_size_and_time_is_read_anew(project, kind) -> None:
    from stages import fetch

    project.params["fetch"]["source"] = local_source(kind)
    project.write()
    for word in ("first", "other"):
        write_words(project.folder / "images", kind, word)
        fetch.dataset()
        captions = [json.loads(line)["captions"][0] for line in (project.folder / "data/raw/captions.jsonl").open()]
        assert {caption.split()[0] for caption in captions} == {word}


def test_lines_that_are_no_records_are_skipped_and_counted(project) -> None:
    from stages import fetch

    with (project.folder / "images/metadata.jsonl").open("a") as file:
        file.write('{"file_name": "0000.png", "caption": "x"}\nnot json\n')
    with pytest.raises(ValueError, match=r"images/metadata.jsonl, line 25 \(0000.png\): no caption: has no key `text`"):
        fetch.dataset()
    project.params["fetch"] |= {"on_bad": "skip", "max_bad_fraction": 0.5}
    project.write()
    fetch.dataset()
    assert project.json("data/reports/fetch-dataset/metrics.json")["skipped_by_kind"] == {"no caption": 1, "not JSON": 1}


def test_a_moved_folder_draws_the_same_bad_records(tmp_path) -> None:
    keys = []
    for name in ("one", "another"):
        local = tmp_path / name
        local.mkdir()
        (local / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "x"}\n{}\n')
        source = folder.open_source(folder.Source(name="folder", captions=Metadata(name="metadata", column="text")), local)
        keys.append([(record.key, record.identity) for record in source.records])
    assert keys[0] == keys[1]


def test_a_source_without_records_is_named(project) -> None:
    from stages import fetch

    table = pyarrow.table({"image": pyarrow.array([], pyarrow.binary()), "text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(table, project.folder / "images/a.parquet")
    project.params["fetch"]["source"] = {
        "name": "parquet",
        "files": "*.parquet",
        "image_column": "image",
        "caption_column": "text",
    }
    project.write()
    with pytest.raises(ValueError, match=r"`fetch.source`: Parquet files of images: no records"):
        fetch.dataset()


def test_everything_found_is_counted_once(project, capsys) -> None:
    from stages import fetch

    images = project.folder / "images"
    rows = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    for n in range(6):
        shutil.copyfile(images / f"000{n}.png", images / f"copy-{n}.png")
        rows += [{"file_name": f"copy-{n}.png", "text": "the same square"}, {"file_name": f"000{n}.png", "text": "named twice"}]
    rows += [{"file_name": "gone.png", "text": "gone"}, {"file_name": "0002.png", "text": " \u200b\ufeff"}]
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copyfile(images / "0003.png", images / "unnamed.png")
    project.params["fetch"] |= {"on_bad": "skip", "max_bad_fraction": 0.5, "max_train_records": 14}
    project.write()
    fetch.dataset()
    metrics = project.json("data/reports/fetch-dataset/metrics.json")
    assert metrics["found"] == len(rows) + 1
    assert metrics["found"] == sum(metrics["records"].values()) + sum(
        metrics[name] for name in ("skipped", "merged", "unnamed", "over_limit")
    )
    assert metrics["records"]["train"] == 14
    assert metrics["over_limit"] > 0
    assert metrics["merged"] > 0
    assert metrics["unnamed"] == 1
    listed = list(csv.DictReader((project.folder / "data/raw/skipped.csv").open(encoding="utf-8")))
    kinds = Counter(row["reason"].partition(":")[0] for row in listed)
    assert kinds == metrics["skipped_by_kind"] | {"merged": metrics["merged"], "unnamed": 1}
    assert re.search(
        r"of 39 found\nleft out: .*missing image.*1 images without a caption.*over the limits.*\nnote: 7 held-out records",
        capsys.readouterr().out,
    )


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["x", "y", "", None])), max_size=60), st.integers(1, 9))
def test_found_is_the_sum_of_what_became_of_it(offered, most) -> None:
    records = [record(f"r{name}", caption, content=drawing(name % 20)) for name, caption in offered]
    selections, screen, _ = gathered(records, max_train_records=most, max_heldout_records=most)
    kept = sum(len(selection.kept) for selection in selections.values())
    assert screen.found == len(records) == kept + len(screen.skipped) + len(screen.merged) + screen.over_limit


@pytest.mark.parametrize("text", ["\ufeff", "\u200b", "\u2060 \u00a0", "\ufeff\n", "\x1b\x07"])
def test_a_caption_that_shows_nothing_is_blank(text) -> None:
    _, screen, _ = gathered([record("a", text)])
    assert screen.kinds() == {"blank caption": 1}


def test_captions_keep_their_joiners_and_lose_byte_order_marks() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    selections, screen, _ = gathered([record("a", f"\ufeffa {family}", "\ufeffred\ufeff heart", "red heart")])
    assert [kept.captions for selection in selections.values() for kept in selection.in_order()] == [
        (f"a {family}", "red heart")
    ]
    assert not screen.skipped


@pytest.mark.parametrize("text", ["\ufe0f", "\u3164", "\u2800", "\u00ad \u034f"])
def test_letters_that_draw_nothing_are_blank(text) -> None:
    _, screen, _ = gathered([record("a", text)])
    assert screen.kinds() == {"blank caption": 1}


def test_a_record_gives_way_with_those_merged_with_it() -> None:
    names = [f"r{n}" for n in range(60)]
    selections, screen, _ = gathered([record(name, "x") for name in names for _ in range(2)], max_train_records=3)
    kept = {one.place for selection in selections.values() for one in selection.in_order()}
    assert {reason.removeprefix("merged: same image as ") for _, reason in screen.merged} == kept
    assert len(screen.merged) == len(kept)
    assert screen.found == 120 == 2 * len(kept) + screen.over_limit
