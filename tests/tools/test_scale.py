import re

import pytest
import torch

from t2i.data.order import Global, Windows
from t2i.tools.counts import RecordCounts, alike
from t2i.tools.scale import Rates, caching, clock, part_lines, reading_lines, set_lines
from t2i.tools.sizes import Sizes, sizes_of

VIEWS = {"train": 2, "heldout": 1}
RATES = Rates(0.1, 0.01, 0.5, "a computer")


def of_records(train: int, heldout: int = 0, captions: int = 1) -> tuple[Sizes, RecordCounts]:
    dataset = alike({"train": train, "heldout": heldout}, captions, 10, 5)
    return sizes_of(dataset, VIEWS, torch.zeros(8, 2, 2), {"hidden": torch.zeros(4, 2)}), dataset


def test_a_hundred_million_records_are_counted_without_a_list_of_them() -> None:
    dataset = alike({"train": 100_000_000, "heldout": 128}, 1, 1000, 1000)
    sizes = sizes_of(dataset, VIEWS, torch.zeros(8, 64, 64), {"hidden": torch.zeros(77, 768)})
    assert len(sizes.latents["train"]) == 100_000
    assert sizes.latents["train"][0].tar_bytes > 1000 * 2 * 8 * 64 * 64 * 2


def test_the_largest_part_is_described() -> None:
    sizes, dataset = of_records(90, 10, captions=3)
    lines = dict(part_lines(sizes, dataset, VIEWS, 4, RATES))
    assert lines["part, encode images"].startswith("at most 3 of 10 shards")
    assert lines["part, encode images"].endswith("about 0 min 06 s for a computer")  # 3 shards of 10 records with 2 views
    assert lines["part, encode captions"].startswith("at most 5 of 20 shards")
    assert "" not in lines


def test_parts_without_a_shard_are_said() -> None:
    sizes, dataset = of_records(90, 10)
    assert dict(part_lines(sizes, dataset, VIEWS, 25, RATES))[""].startswith("5 of 25 parts")


def test_training_reads_each_record_once_per_epoch() -> None:
    sizes, dataset = of_records(100)
    per_image = sizes.bytes("train") // 100
    lines = dict(reading_lines(sizes, dataset, Windows(name="windows", shards=2), RATES))
    assert lines["reading"].startswith(f"{per_image / 1000:.3g} kB per image, or {2 * per_image / 1000:.3g} kB per second")
    assert re.match(r"2 shards of moments .*; a window lasts about 0 min 10 s", lines["window"])


def test_an_unknown_speed_is_left_out() -> None:
    sizes, dataset = of_records(100)
    lines = dict(reading_lines(sizes, dataset, Windows(name="windows", shards=2), RATES._replace(image=None)))
    assert "second" not in lines["reading"]
    assert "lasts" not in lines["window"]


@pytest.mark.parametrize(("records", "suggested"), [(160, False), (161, True)])
def test_a_global_order_of_many_shards_suggests_windows(records, suggested) -> None:
    sizes, dataset = of_records(records)
    lines = dict(reading_lines(sizes, dataset, Global(name="global"), RATES))
    assert f"all {16 + suggested} shards" in lines["window"]
    assert ("{name: windows, shards: 16}" in lines.get("", "")) == suggested


@pytest.mark.parametrize(
    ("images", "answer"),
    [
        (99, "does not pay .* 100 training records .* 99 of them; .*`fetch.max_train_records: 99`"),
        (190, "does not pay .* about 0 min 21 s; .* 190 images .* about 0 min 21 s"),  # two views each: 21 s against 20.9 s
        (191, "pays: .* about 0 min 21 s; .* 191 images .* about 0 min 21 s"),
        (1000, "pays: .* about 0 min 21 s; .* about 1 min 50 s"),
    ],
)
def test_caching_pays_if_encoding_at_each_use_takes_longer(images, answer) -> None:
    _, dataset = of_records(100, heldout=50)
    assert re.match(answer, caching(dataset, VIEWS, images, RATES))


def test_images_that_are_not_fetched_have_no_known_size(tmp_path) -> None:
    sizes, dataset = of_records(100)
    lines = dict(set_lines(sizes, dataset, tmp_path))
    assert lines["images and captions"] == "not known; with 100 kB per image: 10 MB"
    assert str(tmp_path) in lines["disk, to encode"]


def test_durations_are_in_words() -> None:
    words = [clock(seconds) for seconds in (None, 9.0, 246.0, 11_100.0, 1_270_800.0)]
    assert words == ["unknown", "about 0 min 09 s", "about 4 min 06 s", "about 3 h 05 min", "about 353 h (14.7 days)"]
