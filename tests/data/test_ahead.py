from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic import batches_of, write_caches
from t2i.data.ahead import Ahead
from t2i.data.cached import CachedRecords
from t2i.data.order import Global, Windows
from t2i.data.storage import Storage


class Watched(Storage):
    """Notes what is needed."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.most_bytes, self.needed = most, list[list[Path]]()

    def need(self, paths: Any) -> None:
        self.needed.append(list(paths))

    def check_room(self, size: int) -> None:
        if self.most_bytes is not None and size > self.most_bytes:
            raise ValueError(f"{size} bytes")


def ahead(folder: Path, most_shards: float | None, order: Any) -> tuple[Ahead, CachedRecords, Watched]:
    """Returns what keeps some shards of a set of 8 shards, of both latents and embeddings."""
    latents, embeds = folder / "latents", folder / "embeds"
    if not latents.exists():
        write_caches(folder, 16, per_shard=2)
    size = max(path.stat().st_size for path in (*latents.glob("*.tar"), *embeds.glob("*.tar")))
    storage = Watched(None if most_shards is None else int(most_shards * size))
    records = CachedRecords(latents, embeds, "train", storage)
    return Ahead(replace(batches_of(records, 2), order=order)), records, storage


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("caches")


def test_without_a_store_nothing_is_fetched(folder) -> None:
    shards, _, storage = ahead(folder, None, Windows(name="windows", shards=2))
    shards.at(0)
    assert storage.needed == []


def test_the_window_and_what_fits_of_the_next_ones(folder) -> None:
    shards, records, storage = ahead(folder, 100, Windows(name="windows", shards=1))
    epoch = records.epoch(Windows(name="windows", shards=1))
    shards.at(0)
    windows = epoch.windows_from(0, 0)
    first, second = next(windows), next(windows)
    own = records.shards(first.shards.tolist())
    assert storage.needed[0][: len(own)] == list(own)
    assert set(records.shards(second.shards.tolist())) <= set(storage.needed[0])
    shards.at(first.end - 1)
    assert len(storage.needed) == 1, "the same window"
    shards.at(first.end)
    assert storage.needed[1][0] == next(iter(records.shards(second.shards.tolist())))


def test_a_window_that_does_not_fit_is_refused_at_once(folder) -> None:
    with pytest.raises(ValueError, match="bytes"):
        ahead(folder, 3, Global(name="global"))


def test_every_record_of_a_window_is_in_its_shards(folder) -> None:
    shards, records, storage = ahead(folder, 6, order := Windows(name="windows", shards=1))
    epoch = records.epoch(order)
    for position in range(2 * len(epoch)):
        shards.at(position)
        (record,) = epoch.records([position], 0)
        used = {records._latents[record].shard, records._embeds.find(records.key(record), record).shard}
        assert used <= set(storage.needed[-1])
