"""Verb: bring a source's records to shards of images and one file of captions."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from tqdm import tqdm

from t2i.params import Params, check, resolve_plugin
from t2i.records import SPLITS, Record, Split, hash_fraction, split_of
from t2i.shards import write_manifest, write_shard
from t2i.work import fresh


class Fetch(Params):
    """Section `fetch`: where the records come from, and which of them are kept."""

    source: Any
    """A source by `name` (a module of t2i/sources), with that source's parameters."""
    local: str
    """The folder that the source `folder` reads. Must exist, since DVC watches it."""
    heldout_fraction: float = Field(gt=0, lt=1)
    """Share of the records, by hash, that the fine-tune never sees."""
    max_train_records: int | None = Field(ge=1)
    """Most records to train on, drawn by seed; null: all."""
    max_heldout_records: int | None = Field(ge=1)
    """Most held-out records, drawn by seed; null: all."""
    records_per_shard: int = Field(ge=1)
    """Records in a tar."""
    seed: int
    """Decides which records are kept where there are more than asked for."""

    @field_validator("source", mode="before")
    @classmethod
    def _chosen(cls, source: object) -> Any:
        if isinstance(source, Params):
            return source
        if not isinstance(source, dict) or "name" not in source:
            raise ValueError("wanted a `name` and that source's parameters")
        return check(resolve_plugin("t2i.sources", source["name"]).Params, source, "fetch.source")


def fetch_dataset(params: Fetch, out: Path) -> dict[Split, tuple[int, int]]:
    """Writes `out`/images/{split}-00000.tar, `out`/captions.jsonl and `out`/dataset.json.

    Returns:
        For each split, how many records were kept and how many were there.

    Raises:
        ValueError: naming the record, where a caption cannot be used; or where a split is empty.
    """
    dataset = resolve_plugin("t2i.sources", params.source.name).load(params.source, Path(params.local))
    found = split_up(dataset.records, params.heldout_fraction)
    most: dict[Split, int | None] = {"train": params.max_train_records, "heldout": params.max_heldout_records}
    splits = {split: select(found[split], most[split], params.seed) for split in SPLITS}
    for split in SPLITS:
        if not splits[split]:
            raise ValueError(
                f"`fetch`: no record is left for the split {split!r} "
                f"(train {len(splits['train'])}, held out {len(splits['heldout'])}): "
                "give more records, or change `fetch.heldout_fraction`"
            )
    with fresh(out) as folder:
        _write_images(splits, folder / "images", params)
        with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
            for split, records in splits.items():
                for record in records:
                    row = {"key": record.key, "split": split, "captions": record.captions}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        counts = {split: len(records) for split, records in splits.items()}
        description = dataset.description | {"records": counts}
        (folder / "dataset.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {split: (len(splits[split]), len(found[split])) for split in SPLITS}


def split_up(records: Iterator[Record], heldout_fraction: float) -> dict[Split, list[Record]]:
    """Returns the records of each split; those of one key become one with all captions."""
    merged: dict[str, Record] = {}
    for record in tqdm(records, desc="reading", unit=" records"):
        for caption in record.captions:
            if not isinstance(caption, str) or not caption.strip():
                raise ValueError(f"record {record.key}: wanted a caption of text, got {caption!r}")
        known = merged.get(record.key)
        captions = (*(known.captions if known else ()), *record.captions)
        merged[record.key] = replace(record, captions=tuple(dict.fromkeys(captions)))
    splits: dict[Split, list[Record]] = {split: [] for split in SPLITS}
    for record in merged.values():
        splits[split_of(record.identity, heldout_fraction)].append(record)
    return splits


def select(records: list[Record], most: int | None, seed: int) -> list[Record]:
    """Returns at most `most` records, drawn by seed, sorted by key."""
    drawn = sorted(records, key=lambda record: hash_fraction(f"{seed}:{record.identity}"))
    return sorted(drawn[:most], key=lambda record: record.key)


def _write_images(splits: dict[Split, list[Record]], folder: Path, params: Fetch) -> None:
    folder.mkdir()
    rows = []
    with tqdm(total=sum(map(len, splits.values())), desc="images", unit=" images") as progress:
        for split, records in splits.items():
            for number, start in enumerate(range(0, len(records), params.records_per_shard)):
                chunk = records[start : start + params.records_per_shard]
                members = {record.key: (record.extension, record.read()) for record in chunk}
                rows.append(write_shard(folder / f"{split}-{number:05d}.tar", members))
                progress.update(len(chunk))
    write_manifest(folder, rows, {})
