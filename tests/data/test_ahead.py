import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic import batches_of, write_caches
from t2i.data.ahead import Ahead
from t2i.data.bucket import Bucket
from t2i.data.cached import CachedRecords
from t2i.data.manifest import read_manifest
from t2i.data.order import Global, Windows
from t2i.data.remote import Remote, ShardCache

SHARDS, PER_SHARD = 8, 2


class Watched(Remote):
    """A store that notes what is needed, with a cache for some shards of both sets."""

    def __init__(self, folder: Path, pairs: float) -> None:
        size = sum(next((folder / name).glob("train-00000.npy")).stat().st_size for name in ("latents", "embeds"))
        size += (
            sum(row.bytes for name in ("latents", "embeds") for row in read_manifest_of(folder, name) if row.is_shard) // SHARDS
        )
        cache = ShardCache(folder=str(folder / "cache"), gb=pairs * size / 1e9)
        super().__init__(Bucket(str(folder / "store")), cache, verify=True)
        self.needed = list[list[Path]]()

    def need(self, paths: Any) -> None:
        self.needed.append(list(paths))


def read_manifest_of(folder: Path, name: str) -> Any:
    whole = Remote(Bucket(str(folder / "store")), ShardCache(folder=str(folder / "cache"), gb=1), verify=True)
    return read_manifest(folder / name, whole).files


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two sets of eight shards in a store."""
    folder = tmp_path_factory.mktemp("caches")
    whole = Remote(Bucket(str(folder / "store")), ShardCache(folder=str(folder / "cache"), gb=1), verify=True)
    for of_set in write_caches(folder, SHARDS * PER_SHARD, PER_SHARD):
        for file in read_manifest(of_set).files:
            whole.put(of_set / file.name, file)
    return folder


def ahead(folder: Path, pairs: float, shards: int = 1, batch_size: int = 2) -> tuple[Ahead, CachedRecords, Watched]:
    storage, order = Watched(folder, pairs), Windows(name="windows", shards=shards)
    records = CachedRecords(folder / "latents", folder / "embeds", "train", storage)
    return Ahead(replace(batches_of(records, batch_size), order=order)), records, storage


def windows_of(records: CachedRecords, shards: int = 1) -> Any:
    return records.epoch(Windows(name="windows", shards=shards)).windows_from(0, 0)


def test_shards_in_their_folders_are_not_fetched(folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("latents", "embeds"):
        for file in read_manifest_of(tmp_path, name):
            if file.is_shard:
                shutil.copy(tmp_path / "store" / f"{file.sha256}.tar", tmp_path / name / file.name)
    shards, _, storage = ahead(tmp_path, pairs=0.1)
    shards.at(0, 1)
    assert storage.needed == [[]]


def test_the_window_and_what_fits_of_the_next_ones(folder) -> None:
    shards, records, storage = ahead(folder, pairs=5)
    windows = windows_of(records)
    first, second, third = next(windows), next(windows), next(windows)
    own = list(records.shards(first.shards.tolist()))
    shards.at(first.start, first.end - 1)
    assert storage.needed[0][: len(own)] == own
    assert len(own) < len(storage.needed[0]) <= 2 * 5
    for window in (second, third):
        assert set(records.shards(window.shards.tolist())) <= set(storage.needed[0])
    shards.at(first.end - 1, first.end - 1)
    assert len(storage.needed) == 1, "the same window"
    shards.at(first.end, second.end - 1)
    assert storage.needed[1][0] == next(iter(records.shards(second.shards.tolist())))


def test_a_batch_in_two_windows_needs_both(folder) -> None:
    shards, records, storage = ahead(folder, pairs=4, shards=2, batch_size=4)
    windows = windows_of(records, shards=2)
    first, second, third = next(windows), next(windows), next(windows)
    shards.at(first.end - 1, first.end)
    for window in (first, second):
        assert set(records.shards(window.shards.tolist())) <= set(storage.needed[0])
    shards.at(first.end, first.end + 1)
    assert not set(storage.needed[1]) & set(records.shards(first.shards.tolist())), "the first window is over"
    assert set(storage.needed[1]) & set(records.shards(third.shards.tolist())), "the third one is fetched meanwhile"


@pytest.mark.parametrize(("pairs", "batch_size"), [(3.9, 2), (5.9, 8)])
def test_a_cache_too_small_for_a_batch_is_refused(folder, pairs, batch_size) -> None:
    with pytest.raises(ValueError, match="needed together have"):
        ahead(folder, pairs, shards=2, batch_size=batch_size)
    ahead(folder, pairs + 0.2, shards=2, batch_size=batch_size)


def test_a_global_order_needs_everything(folder) -> None:
    storage = Watched(folder, 7.9)
    records = CachedRecords(folder / "latents", folder / "embeds", "train", storage)
    with pytest.raises(ValueError, match="needed together have"):
        Ahead(replace(batches_of(records, 2), order=Global(name="global")))


def test_every_record_of_a_batch_is_in_what_is_needed(folder) -> None:
    shards, records, storage = ahead(folder, pairs=4, batch_size=3)
    epoch = records.epoch(Windows(name="windows", shards=1))
    for first in range(0, 2 * len(epoch), 3):
        positions = range(first, first + 3)
        shards.at(positions[0], positions[-1])
        for record in epoch.records(positions, 0):
            used = {records._latents[record].shard, records._embeds.find(records.key(record), record).shard}
            assert used <= set(storage.needed[-1])
