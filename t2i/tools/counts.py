"""Counts: how many records and captions each shard of a dataset has, fetched or imagined."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i.data.manifest import read_manifest
from t2i.data.records import SPLITS, Split, read_captions, split_of_shard
from t2i.data.storage import Storage
from t2i.fetch.dataset import Fetch


@dataclass(frozen=True)
class RecordCounts:
    """The numbers of records and captions to encode."""

    images: dict[Split, list[int]]
    """Number of records of each image shard, and so of each shard of moments."""
    captions: dict[Split, list[Counter[int]]]
    """Of each shard of embeddings: the number of records that have so many captions."""
    images_per_epoch: int
    """The training records, each as often as it is repeated."""
    a_caption: str
    key_width: int
    """Length of the longest key."""
    raw_bytes: int | None
    """Bytes of the images and captions; None if they are not fetched."""

    def records(self, split: Split) -> int:
        """Returns the number of records of a split."""
        return sum(self.images[split])

    def captions_of(self, split: Split) -> int:
        """Returns the number of captions of a split."""
        return sum(captions_in(shard) for shard in self.captions[split])


def captions_in(shard: Counter[int]) -> int:
    """Returns the number of captions of a shard, from the number of records that have so many."""
    return sum(captions * records for captions, records in shard.items())


def fetched(raw: Path, records_per_shard: int, storage: Storage) -> RecordCounts:
    """Returns the counts of the dataset that `fetch dataset` wrote.

    Args:
        raw: its folder.
        records_per_shard: of the embeddings.
        storage: where its shards are.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    if not (raw / "dataset.json").is_file():
        raise ValueError(
            f"{raw}: no dataset found; run `t2i fetch dataset`, or give a number of records, such as --records 10000"
        )
    captions = raw / "captions.jsonl"
    files, rows = read_manifest(raw / "images", storage).files, list(read_captions(captions))
    if not rows:
        raise ValueError(f"{captions}: no records; run `t2i fetch dataset` again")
    return RecordCounts(
        {split: [file.count for file in files if split_of_shard(file.name) == split] for split in SPLITS},
        {
            split: _per_shard([len(row["captions"]) for row in rows if row["split"] == split], records_per_shard)
            for split in SPLITS
        },
        sum(row["repeats"] for row in rows if row["split"] == "train"),
        rows[0]["captions"][0],
        max(len(row["key"]) for row in rows),
        sum(file.bytes for file in files) + captions.stat().st_size,
    )


def imagined(records: int, captions: int, fetch: Fetch, records_per_shard: int) -> RecordCounts:
    """Returns the counts of a dataset that is not fetched.

    Args:
        records: the number of records.
        captions: the number of captions of each record.
        fetch: says how many of them are held out or left out, and the size of the image shards.
        records_per_shard: of the embeddings.
    """
    heldout = min(records - 1, max(1, round(records * fetch.heldout_fraction)))
    train = min(records - heldout, fetch.max_train_records or records)
    return alike(
        {"train": train, "heldout": min(heldout, fetch.max_heldout_records or records)},
        captions,
        fetch.records_per_shard,
        records_per_shard,
    )


def alike(counts: dict[Split, int], captions: int, per_image_shard: int, per_text_shard: int) -> RecordCounts:
    """Returns the counts of a dataset whose records have the same number of captions, and keys of the usual length."""
    return RecordCounts(
        {split: _shards(count, per_image_shard) for split, count in counts.items()},
        {split: [Counter({captions: size}) for size in _shards(count, per_text_shard)] for split, count in counts.items()},
        counts["train"],
        "a photograph of something",
        16,
        None,
    )


def _shards(count: int, most: int) -> list[int]:
    return [min(most, count - at) for at in range(0, count, most)]


def _per_shard(captions: Sequence[int], most: int) -> list[Counter[int]]:
    return [Counter(captions[at : at + most]) for at in range(0, len(captions), most)]
