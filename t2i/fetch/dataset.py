"""Verb: bring a source's records to shards of images and one file of captions."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic import Field, field_validator
from tqdm import tqdm

from t2i.core.files import fresh, write_json
from t2i.core.params import Section, check, resolve_plugin
from t2i.data.caches import dataset_digests
from t2i.data.manifest import write_manifest
from t2i.data.pixels import MOST_PIXELS
from t2i.data.records import SPLITS, Split, split_of
from t2i.data.shards import write_shard
from t2i.fetch.screening import OnBad, Screen, check_captions, image_check
from t2i.fetch.selection import Kept, Selection
from t2i.fetch.source import Record


class Fetch(Section):
    """Section `fetch`: where the records come from, and which of them are kept."""

    source: Any
    """A source by `name` (a module of t2i/fetch/sources), with that source's parameters."""
    local: str
    """The folder that the sources of files read. Must exist, since DVC watches it."""
    on_bad: OnBad
    """What a record does whose image or caption cannot be used: `error` ends the stage and names it; `skip` leaves it out,
    lists it in skipped.csv and counts it by reason in the metrics."""
    max_bad_fraction: float = Field(ge=0, le=1)
    """Largest share of such records among those that were looked at, where they are left out; above it the stage fails."""
    max_pixels: int = Field(ge=1, le=MOST_PIXELS)
    """Pixels above which an image is bad, read from its header; decoding takes 8 to 20 bytes of memory a pixel, and an image
    that asks for more than 40 bytes a pixel of these, and 512 MB, is bad too."""
    min_side_px: int = Field(ge=1)
    """Width or height below which an image is bad, pixels."""
    max_decode_seconds: float = Field(gt=0, le=86_400)
    """Processor time in which an image must be decoded, else it is bad: some files of a few kilobytes would take hours."""
    heldout_fraction: float = Field(gt=0, lt=1)
    """Share of the records, by hash, that the fine-tune never sees."""
    max_train_records: int | None = Field(ge=1)
    """Most records to train on, drawn by seed; null: all. Records that the draw leaves out are not looked at."""
    max_heldout_records: int | None = Field(ge=1)
    """Most held-out records, drawn by seed; null: all."""
    records_per_shard: int = Field(ge=1)
    """Records in a tar."""
    seed: int
    """Decides which records are kept where there are more than asked for."""

    @field_validator("source", mode="before")
    @classmethod
    def _chosen(cls, source: object) -> Any:
        if isinstance(source, Section):
            return source
        if not isinstance(source, dict) or "name" not in source:
            raise ValueError("wanted a `name` and that source's parameters")
        return check(resolve_plugin("t2i.fetch.sources", source["name"]).Source, source, "fetch.source")


class Fetched(NamedTuple):
    """What came of it."""

    kept: dict[Split, int]
    """Records of each split that were kept."""
    found: dict[Split, int]
    """Records of each split that were there, good or bad."""
    looked_at: int
    """Records that the draw took, on its way or to its end, good or bad."""
    skipped: dict[str, int]
    """Records that were left out as bad, by kind of reason."""

    def metrics(self) -> dict[str, Any]:
        """Returns the figures as `dvc metrics` shows them."""
        skipped = {"skipped": sum(self.skipped.values()), "skipped_by_kind": self.skipped}
        return {"records": self.kept, "found": self.found, "looked_at": self.looked_at} | skipped


def fetch_dataset(section: Fetch, out: Path) -> Fetched:
    """Writes `out`/images/{split}-00000.tar, `out`/captions.jsonl, dataset.json and skipped.csv.

    The source is read once, from front to end. An image that the draw takes is read, decoded once to see that it is whole, and
    spooled to a file without a name beside `out`: until the shards are written, the images lie on the disk twice. Memory holds
    captions and places of the kept records (about a kilobyte each), and the images of one shard.

    Raises:
        ValueError: naming the record that cannot be used; or where too many cannot, or a split is empty.
    """
    dataset = resolve_plugin("t2i.fetch.sources", section.source.name).open_source(section.source, Path(section.local))
    most: dict[Split, int | None] = {"train": section.max_train_records, "heldout": section.max_heldout_records}
    selections = {split: Selection(most[split], section.seed) for split in SPLITS}
    screen = Screen(section.on_bad, section.max_bad_fraction)
    with fresh(out) as folder, tempfile.TemporaryFile(dir=folder) as spool:
        found = gather(dataset.records, section, selections, screen, spool)
        screen.check_fraction()
        kept = {split: selection.in_order() for split, selection in selections.items()}
        counts = {split: len(records) for split, records in kept.items()}
        _check_counts(counts)
        _write_images(kept, folder / "images", section.records_per_shard, spool)
        with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
            for split, records in kept.items():
                for record in records:
                    row = {"key": record.key, "split": split, "captions": record.captions}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        screen.write(folder / "skipped.csv")
        write_json(folder / "dataset.json", dataset.description | {"records": counts} | dataset_digests(folder))
    return Fetched(counts, found, screen.looked_at, screen.kinds())


def gather(
    records: Iterator[Record], section: Fetch, selections: dict[Split, Selection], screen: Screen, spool: IO[bytes]
) -> dict[Split, int]:
    """Puts the good ones of the records that the draw takes into their split's selection, their images into the spool.

    Records of one key become one with all captions.

    Returns:
        For each split, how many records there were; further ones of a key that is kept are not counted.
    """
    found = dict.fromkeys(SPLITS, 0)
    with image_check(section.max_pixels, section.min_side_px, section.max_decode_seconds) as check_image:
        for record in tqdm(records, desc="reading", unit=" records"):
            split = split_of(record.identity, section.heldout_fraction)
            selection = selections[split]
            rank, known = selection.rank(record.identity), selection.kept.get(record.key)
            found[split] += not known
            if not known and not selection.takes(rank):
                continue
            screen.looked_at += 1
            try:
                if record.problem:
                    raise ValueError(record.problem)
                check_captions(record.captions)
                if known:
                    captions = tuple(dict.fromkeys((*known.captions, *record.captions)))
                    selection.kept[record.key] = replace(known, captions=captions)
                    continue
                content = record.read()
                extension = check_image(content)
            except ValueError as error:
                screen.leave_out(record.place, str(error))
                continue
            captions = tuple(dict.fromkeys(record.captions))
            selection.add(Kept(record.key, rank, captions, extension, spool.tell(), len(content)))
            spool.write(content)
    return found


def _check_counts(counts: dict[Split, int]) -> None:
    for split, count in counts.items():
        if not count:
            raise ValueError(
                f"`fetch`: no record is left for the split {split!r} (train {counts['train']}, held out {counts['heldout']}): "
                "give more records, or change `fetch.heldout_fraction`"
            )


def _write_images(kept: dict[Split, list[Kept]], folder: Path, records_per_shard: int, spool: IO[bytes]) -> None:
    folder.mkdir()
    rows = []
    with tqdm(total=sum(map(len, kept.values())), desc="images", unit=" images") as progress:
        for split, records in kept.items():
            for number, start in enumerate(range(0, len(records), records_per_shard)):
                members = {}
                for record in records[start : start + records_per_shard]:
                    spool.seek(record.offset)
                    members[record.key] = (record.extension, spool.read(record.size))
                rows.append(write_shard(folder / f"{split}-{number:05d}.tar", members))
                progress.update(len(members))
    write_manifest(folder, rows, {})
