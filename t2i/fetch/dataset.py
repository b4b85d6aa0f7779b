"""Fetches the records of a source into image shards and one file of captions."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic import Field, field_validator
from tqdm import tqdm

from t2i.core.files import fresh, write_json
from t2i.core.params import LocalPath, Section, check, resolve_plugin
from t2i.data.caches import dataset_digests
from t2i.data.decoding import MAX_PIXELS
from t2i.data.manifest import write_manifest
from t2i.data.records import ENOUGH_HELDOUT, SPLITS, Split, split_of
from t2i.data.shards import write_shard
from t2i.data.storage import Storage
from t2i.fetch.screening import OnBad, Screen, checked_captions, image_check
from t2i.fetch.selection import Kept, Selection
from t2i.fetch.source import Record
from t2i.fetch.tags import most_frequent
from t2i.fetch.watched import check_watched


class Fetch(Section):
    """Section `fetch`: where the records come from, and which ones are kept."""

    source: Any
    """The source: its `name` (a module in t2i/fetch/sources) and its parameters."""
    local: LocalPath
    """The folder that local sources read. It must exist, because it is a dependency of the DVC stage."""
    on_bad: OnBad
    """What happens if an image or caption cannot be used: `error` stops the stage and names the record; `skip` leaves the
    record out, lists it in skipped.csv and counts it by kind of reason in the metrics."""
    max_bad_fraction: float = Field(ge=0, le=1)
    """With `on_bad: skip`, the largest fraction of checked records that may be bad; above it the stage fails."""
    max_pixels: int = Field(ge=1, le=MAX_PIXELS)
    """Largest number of pixels in an image, as stated in its header; a larger image is bad. Decoding takes 8 to 20 bytes of
    memory per pixel; an image that needs more than 512 MB plus 40 bytes per pixel of this limit is bad too."""
    min_side_px: int = Field(ge=1)
    """Smallest width and height of an image, in pixels; a smaller image is bad."""
    max_decode_seconds: float = Field(gt=0, le=86_400)
    """Most processor time to decode an image; a slower image is bad. Some files of a few kilobytes would take hours."""
    heldout_fraction: float = Field(gt=0, lt=1)
    """Fraction of the records, chosen by hash, that training never sees."""
    max_train_records: int | None = Field(ge=1)
    """Most training records, drawn by `seed`; null: all. Records that are not drawn are not checked."""
    max_heldout_records: int | None = Field(ge=1)
    """Most held-out records, drawn by `seed`; null: all."""
    records_per_shard: int = Field(ge=1)
    """Number of records in each tar."""
    seed: int
    """Decides which records are kept if there are more than the limits."""

    @field_validator("source", mode="before")
    @classmethod
    def _chosen(cls, source: object) -> Any:
        if isinstance(source, Section):
            return source
        if not isinstance(source, dict) or "name" not in source:
            raise ValueError("wanted a `name` and the parameters of that source")
        return check(resolve_plugin("t2i.fetch.sources", source["name"]).Source, source, "fetch.source")


class Fetched(NamedTuple):
    """What became of everything found: found = kept + skipped + merged + unnamed + over_limit."""

    found: int
    """Number of records found, and of images that no caption names."""
    kept: dict[Split, int]
    """Number of records kept in each split."""
    skipped: dict[str, int]
    """Number of bad records left out, by kind of reason."""
    merged: int
    """Number of records whose captions went to an earlier record with the same image."""
    unnamed: int
    """Number of images that no caption names."""
    over_limit: int
    """Number of records left out because of `max_train_records` and `max_heldout_records`."""
    images_per_epoch: int
    """The training records, each as often as it is repeated."""

    def metrics(self) -> dict[str, Any]:
        """Returns the counts as metrics for `dvc metrics`."""
        skipped = {"skipped": sum(self.skipped.values()), "skipped_by_kind": self.skipped}
        others = {"merged": self.merged, "unnamed": self.unnamed, "over_limit": self.over_limit}
        return {"found": self.found, "records": self.kept} | skipped | others

    def note(self) -> str | None:
        """Returns a note if there are too few held-out records to measure a model well, else None."""
        if self.kept["heldout"] >= ENOUGH_HELDOUT:
            return None
        return (
            f"{self.kept['heldout']} held-out records are few to measure a model by: for {ENOUGH_HELDOUT} or more, raise "
            "`fetch.heldout_fraction` or `fetch.max_heldout_records`, or add images"
        )

    def left_out(self) -> str:
        """Returns what was not kept, in words; empty if everything was."""
        counts = self.skipped | {
            "merged with a record of the same image": self.merged,
            "images without a caption": self.unnamed,
        }
        counts["over the limits per split"] = self.over_limit
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def fetch_dataset(section: Fetch, out: Path, storage: Storage) -> Fetched:
    """Writes images/{split}-00000.tar, captions.jsonl, dataset.json and skipped.csv into `out`.

    The source is read once, from start to end. Each drawn image is read, decoded to check that it is complete, and appended to
    an unnamed spool file beside `out`. While the shards are written, the images are on disk twice. Memory holds the captions
    and spool positions of the kept records (about a kilobyte each), and the images of one shard.

    Args:
        section: the parameters.
        out: output folder.
        storage: where the image shards belong.

    Raises:
        ValueError: if a record cannot be used (with `on_bad: error`), too many cannot be used, or a split is empty.
    """
    if section.source.reads_local:
        check_watched(Path(section.local), "fetch.local")
    dataset = resolve_plugin("t2i.fetch.sources", section.source.name).open_source(section.source, Path(section.local))
    limits: dict[Split, int | None] = {"train": section.max_train_records, "heldout": section.max_heldout_records}
    selections = {split: Selection(limits[split], section.seed) for split in SPLITS}
    screen = Screen(section.on_bad, section.max_bad_fraction)
    with fresh(out) as folder, tempfile.TemporaryFile(dir=folder) as spool:
        gather(dataset.records, section, selections, screen, spool)
        if not screen.found:
            raise ValueError(f"`fetch.source`: {dataset.description['source']}: no records in it")
        screen.note_unnamed(dataset.unnamed)
        screen.check_fraction()
        kept = {split: selection.in_order() for split, selection in selections.items()}
        counts = {split: len(records) for split, records in kept.items()}
        _check_counts(counts, len(screen.skipped))
        _write_images(kept, folder / "images", section.records_per_shard, storage, spool)
        _write_captions(kept, folder / "captions.jsonl")
        screen.write(folder / "skipped.csv")
        tags = most_frequent(caption for record in kept["train"] for caption in record.captions)
        described = dataset.description | {"records": counts, "tags": tags} | dataset_digests(folder)
        write_json(folder / "dataset.json", described)
    left_out = (screen.kinds(), len(screen.merged), len(screen.unnamed), screen.over_limit)
    return Fetched(screen.found, counts, *left_out, sum(record.repeats for record in kept["train"]))


def gather(
    records: Iterator[Record], section: Fetch, selections: dict[Split, Selection], screen: Screen, spool: IO[bytes]
) -> None:
    """Draws records, checks them, and adds the good ones to the selection of their split and their images to the spool.

    Records with the same key are merged into one record with all their captions and the largest of their repeats, so that a
    copy of an image gives it no more weight. `screen` counts what becomes of each record.
    """
    with image_check(section.max_pixels, section.min_side_px, section.max_decode_seconds) as check_image:
        for record in tqdm(records, desc="reading", unit=" records"):
            screen.found += 1
            selection = selections[split_of(record.identity, section.heldout_fraction)]
            rank, known = selection.rank(record.identity), selection.kept.get(record.key)
            if not known and not selection.takes(rank):
                screen.over_limit += 1
                continue
            screen.checked += 1
            try:
                if record.problem:
                    raise ValueError(record.problem)
                captions = checked_captions(record.captions)
                if known:
                    captions = tuple(dict.fromkeys((*known.captions, *captions)))
                    repeats = max(known.repeats, record.repeats)
                    selection.kept[record.key] = replace(known, captions=captions, repeats=repeats)
                    screen.merge(record.place, known.place)
                    continue
                content = record.read()
                extension = check_image(content)
            except ValueError as error:
                screen.leave_out(record.place, str(error))
                continue
            size = len(content)
            kept = Kept(record.key, record.place, rank, captions, extension, spool.tell(), size, record.repeats)
            if removed := selection.add(kept):
                screen.give_way(removed.place)
            spool.write(content)


def _check_counts(counts: dict[Split, int], skipped: int) -> None:
    for split, count in counts.items():
        if not count:
            bad = f", {skipped} skipped" if skipped else ""
            raise ValueError(
                f"`fetch`: split {split!r} has no records (train {counts['train']}, held out {counts['heldout']}{bad}): "
                "add records, or change `fetch.heldout_fraction`"
                + ("; `fetch.on_bad: error` names the first bad one" if skipped else "")
            )


def _write_captions(kept: dict[Split, list[Kept]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for split, records in kept.items():
            for record in records:
                row: dict[str, Any] = {"key": record.key, "split": split, "captions": record.captions}
                if split == "train" and record.repeats != 1:
                    row["repeats"] = record.repeats
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_images(
    kept: dict[Split, list[Kept]], folder: Path, records_per_shard: int, storage: Storage, spool: IO[bytes]
) -> None:
    folder.mkdir()
    rows = []
    with tqdm(total=sum(map(len, kept.values())), desc="images", unit=" images") as progress:
        for split, records in kept.items():
            for number, start in enumerate(range(0, len(records), records_per_shard)):
                members = {}
                for record in records[start : start + records_per_shard]:
                    spool.seek(record.offset)
                    members[record.key] = (record.extension, spool.read(record.size))
                path = folder / f"{split}-{number:05d}.tar"
                files = write_shard(path, members)
                for file in files:
                    storage.put(path, file)
                rows += files
                progress.update(len(members))
    write_manifest(folder, rows, {})
