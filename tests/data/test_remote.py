import multiprocessing
import random
import shutil
import threading
import time
from pathlib import Path

import pytest

from t2i.data import remote as shards_at_a_url
from t2i.data.bucket import Bucket, StoreLost
from t2i.data.digests import sha256_of
from t2i.data.remote import Remote, ShardCache
from t2i.data.storage import File, Folders, Storage

SIZE = 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of four shards in a store, and an index in its folder."""
    folder = tmp_path / "latents"
    folder.mkdir()
    for number in range(4):
        (folder / f"train-{number:05d}.tar").write_bytes(bytes([number]) * SIZE)
    (folder / "train-00000.npy").write_bytes(b"index")
    return folder


@pytest.fixture
def rows(folder: Path, tmp_path: Path) -> list[File]:
    """Their rows in the manifest, once the shards are in the store."""
    paths = sorted(folder.iterdir())
    rows = [File(name=path.name, count=1, bytes=path.stat().st_size, sha256=sha256_of(path)) for path in paths]
    storage = remote(tmp_path)
    for path, row in zip(paths, rows, strict=True):
        storage.put(path, row)
    assert [path.name for path in folder.iterdir()] == ["train-00000.npy"]
    return rows


def remote(tmp_path: Path, shards: float = 10, *, verify: bool = True) -> Remote:
    """Returns the store with a cache for some shards."""
    cache = ShardCache(folder=str(tmp_path / "cache"), gb=shards * SIZE / 1e9)
    return Remote(Bucket(str(tmp_path / "store")), cache, verify=verify)


def paths_of(storage: Storage, folder: Path, rows: list[File]) -> list[Path]:
    return [storage.path(folder, row) for row in rows if row.is_shard]


def cached(tmp_path: Path) -> set[int]:
    """Returns the numbers of the shards in the cache."""
    return {path.read_bytes()[0] for path in (tmp_path / "cache").glob("*/*.tar")}


def test_a_set_is_complete_if_its_shards_are_in_the_store(folder, rows, tmp_path) -> None:
    assert remote(tmp_path).sizes(folder, rows) == {row.name: row.bytes for row in rows}
    assert Folders().sizes(folder, rows) == {"train-00000.npy": 5}
    next((tmp_path / "store").iterdir()).unlink()
    assert len(remote(tmp_path).sizes(folder, rows)) == 4


def test_a_shard_is_fetched_when_it_is_read(folder, rows, tmp_path) -> None:
    storage = remote(tmp_path)
    paths = paths_of(storage, folder, rows)
    assert paths[2].name == "train-00002.tar"
    assert not paths[2].exists()
    assert storage.content(paths[2]).tobytes() == bytes([2]) * SIZE
    assert cached(tmp_path) == {2}
    assert storage.content(storage.path(folder, rows[0])).tobytes() == b"index"


def test_a_shard_in_its_folder_is_not_fetched(folder, rows, tmp_path) -> None:
    own = folder / "train-00001.tar"
    own.write_bytes(bytes([1]) * SIZE)
    storage = remote(tmp_path)
    assert storage.path(folder, rows[2]) == own
    assert storage.content(own)[0] == 1
    assert cached(tmp_path) == set()


def test_the_least_recently_used_copy_gives_way(folder, rows, tmp_path) -> None:
    storage = remote(tmp_path, shards=2)
    paths = paths_of(storage, folder, rows)
    first = storage.content(paths[0])
    for number in (1, 0, 2):
        storage.content(paths[number])
    assert cached(tmp_path) == {0, 2}
    storage.content(paths[3])
    assert cached(tmp_path) == {2, 3}
    assert first.tobytes() == bytes([0]) * SIZE, "what was read is still there"


def test_what_is_needed_is_fetched_ahead_and_stays(folder, rows, tmp_path) -> None:
    storage = remote(tmp_path, shards=3)
    paths = paths_of(storage, folder, rows)
    storage.need(paths[:2])
    deadline = time.monotonic() + 20
    while cached(tmp_path) != {0, 1}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for number in (2, 3, 2, 3):
        storage.content(paths[number])
        assert cached(tmp_path) == {0, 1, number}
    storage.need(paths[2:])
    storage.content(paths[2])
    storage.content(paths[3])
    storage.content(paths[0])
    assert cached(tmp_path) == {0, 2, 3}


def test_a_copy_in_use_by_another_process_stays(folder, rows, tmp_path) -> None:
    theirs, ours = remote(tmp_path, shards=2), remote(tmp_path, shards=2)
    paths = paths_of(theirs, folder, rows)
    assert paths == paths_of(ours, folder, rows)
    theirs.content(paths[0])
    for number in (1, 2, 3):
        ours.content(paths[number])
    assert 0 in cached(tmp_path)


@pytest.mark.parametrize(("verify", "read"), [(True, 1), (False, 7)])
def test_copies_of_earlier_runs_are_compared_if_wanted(folder, rows, tmp_path, verify, read) -> None:
    paths = paths_of(storage := remote(tmp_path), folder, rows)
    storage.content(paths[1])
    paths[1].write_bytes(bytes([7]) * SIZE)
    again = remote(tmp_path, verify=verify)
    assert again.content(paths_of(again, folder, rows)[1])[0] == read


def test_what_changed_in_the_store_is_never_used(folder, rows, tmp_path) -> None:
    (tmp_path / "store" / f"{rows[1].sha256}.tar").write_bytes(bytes([9]) * SIZE)
    storage = remote(tmp_path)
    with pytest.raises(StoreLost, match=r"has another hash than its name: .* writes train-00000.tar again"):
        storage.content(paths_of(storage, folder, rows)[0])
    assert cached(tmp_path) == set()
    assert not list((tmp_path / "cache").glob("*/*.partial"))


def test_a_cache_that_is_too_small_is_named(folder, rows, tmp_path) -> None:
    remote(tmp_path, shards=3).check_room(3000)
    with pytest.raises(ValueError, match=r"needed together have 3 kB, but `runtime.shard_cache.gb` is 2.9e-06: increase it"):
        remote(tmp_path, shards=2.9).check_room(3000)


def test_a_shard_that_is_read_comes_before_those_that_are_needed(folder, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shards_at_a_url, "_THREADS", 1)
    blocks, fetched, go = Bucket.blocks, [], threading.Event()

    def slow(bucket, name, size):
        fetched.append(name)
        go.wait(20)
        return blocks(bucket, name, size)

    monkeypatch.setattr(Bucket, "blocks", slow)
    storage = remote(tmp_path)
    paths = paths_of(storage, folder, rows)
    storage.need(paths[:3])
    while not fetched:
        time.sleep(0.01)
    reading = threading.Thread(target=storage.content, args=(paths[3],))
    reading.start()
    while not storage._wanted:
        time.sleep(0.01)
    storage.need(paths[:2])
    go.set()
    reading.join()
    assert fetched[:2] == [f"{rows[1].sha256}.tar", f"{rows[4].sha256}.tar"]
    storage.content(paths[1])
    assert f"{rows[3].sha256}.tar" not in fetched, "it was not needed any more"


def test_closing_ends_all_waiting(folder, rows, tmp_path, monkeypatch) -> None:
    storage = remote(tmp_path)
    paths = paths_of(storage, folder, rows)
    storage.content(paths[0])
    shutil.rmtree(tmp_path / "store")  # it may come back
    threading.Timer(0.5, storage.close).start()
    began = time.monotonic()
    with pytest.raises(StoreLost):
        storage.content(paths[1])
    with pytest.raises(StoreLost):
        storage.content(paths[2])
    assert time.monotonic() - began < 30


def test_few_copies_are_open_at_once(folder, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shards_at_a_url, "_MOST_USED", 2)
    storage = remote(tmp_path)
    paths = paths_of(storage, folder, rows)
    for number in (0, 1, 2, 3, 0, 1):
        assert storage.content(paths[number])[0] == number
        assert len(storage._used) <= 2
    assert cached(tmp_path) == {0, 1, 2, 3}


def read_all(tmp_path: Path, folder: Path, rows: list[File], seed: int) -> None:
    """Reads shards at random from a cache for two of them."""
    storage, chance = remote(tmp_path, shards=2), random.Random(seed)
    paths = paths_of(storage, folder, rows)
    for _ in range(100):
        number = chance.randrange(4)
        assert storage.content(paths[number]).tobytes() == bytes([number]) * SIZE


def test_processes_that_share_a_small_cache_read_right(folder, rows, tmp_path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=read_all, args=(tmp_path, folder, rows, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_threads_that_read_one_shard_fetch_it_once(folder, rows, tmp_path, monkeypatch) -> None:
    blocks, fetched = Bucket.blocks, []

    def counted(bucket, name, size):
        fetched.append(name)
        return blocks(bucket, name, size)

    monkeypatch.setattr(Bucket, "blocks", counted)
    storage = remote(tmp_path)
    path = paths_of(storage, folder, rows)[0]
    threads = [threading.Thread(target=storage.content, args=(path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
