from hypothesis import given
from hypothesis import strategies as st

from t2i.data.footprint import ShardSize, shard_sizes, window_bytes, windows_bytes
from t2i.data.manifest import read_manifest
from t2i.data.order import Epoch, Global, Windows
from tests import tiny


def of_equal_shards(records: int, per_shard: int, size: int) -> list[ShardSize]:
    counts = [min(per_shard, records - at) for at in range(0, records, per_shard)]
    return [ShardSize(count, size * count, 1) for count in counts]


def test_a_window_has_as_many_shards_of_both_sets() -> None:
    latents, embeds = of_equal_shards(100, 10, 3), of_equal_shards(100, 10, 5)
    assert window_bytes(latents, embeds, Windows(name="windows", shards=4)) == 4 * (10 * (3 + 5) + 2)


def test_the_largest_shards_may_meet_in_a_window() -> None:
    latents = [ShardSize(1, size, 0) for size in (7, 1, 9, 2)]
    embeds = [ShardSize(1, size, 0) for size in (10, 20, 10, 20)]
    assert window_bytes(latents, embeds, Windows(name="windows", shards=2)) == (1 + 20) + (2 + 20)


def test_a_global_order_needs_everything() -> None:
    latents, embeds = of_equal_shards(95, 10, 3), of_equal_shards(95, 40, 5)
    assert window_bytes(latents, embeds, Global(name="global")) == 95 * (3 + 5) + 10 + 3


@given(
    images=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    shards=st.integers(1, 9),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_no_batch_needs_more(images, shards, batch_size, seed) -> None:
    records, order = sum(images), Windows(name="windows", shards=shards)
    latents = [ShardSize(count, 3 * count + number, 1) for number, count in enumerate(images)]
    embeds = [ShardSize(count, 7 * count, 1) for count in images]
    most, epoch = windows_bytes(latents, embeds, order, batch_size), Epoch(images, {}, order)
    for step in range(2 * records):
        needed = set()
        for window in epoch.windows_from(step * batch_size, seed):
            needed |= set(window.shards.tolist())
            if window.end >= (step + 1) * batch_size:
                break
        assert sum(latents[n].bytes + embeds[n].bytes for n in needed) <= most


@given(
    images=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    per_text_shard=st.integers(1, 9),
    shards=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_no_window_needs_more(images, per_text_shard, shards, seed) -> None:
    records, order = sum(images), Windows(name="windows", shards=shards)
    latents = [ShardSize(count, 3 * count + number, 1) for number, count in enumerate(images)]
    embeds = of_equal_shards(records, per_text_shard, 7)
    text_shard_of = [number for number, shard in enumerate(embeds) for _ in range(shard.records)]
    starts = [sum(images[:number]) for number in range(len(images))]
    for window in Epoch(images, {}, order).windows_from(0, seed):
        its = {text_shard_of[starts[n] + at] for n in window.shards.tolist() for at in range(images[n])}
        needed = sum(latents[n].bytes for n in window.shards.tolist()) + sum(embeds[n].bytes for n in its)
        assert needed <= window_bytes(latents, embeds, order)
        if window.start >= 2 * records:
            break


def test_sizes_are_those_of_the_files(tmp_path) -> None:
    latents, embeds = tiny.write_caches(tmp_path, per_shard=4)
    for folder in (latents, embeds):
        sizes = shard_sizes(read_manifest(folder).files, "train")
        assert [shard.records for shard in sizes] == [4, 4, 2]
        tars = sorted(folder.glob("*.tar"))
        assert [shard.bytes for shard in sizes] == [tar.stat().st_size + tar.with_suffix(".npy").stat().st_size for tar in tars]
        assert shard_sizes(read_manifest(folder).files, "heldout") == []
