"""What a training process does before its first batch, for sets of 1,000 to 1,000,000 records: time and memory.

python -m benchmarks.startup

The sets are indices of that many records that point into a few real shards, so that only the number of records grows. Every
measurement is a process of its own; the sizes take turns. `open` is opening both sets and the order of an epoch, `batch` the
first batch of 32 records, `memory` what both add to the resident memory of the process, without the pages of the files.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

from benchmarks.measured import ROOT
from benchmarks.synthetic import batches_of, write_caches
from t2i.data.cached import CachedRecords
from t2i.data.index import Index, index_name
from t2i.data.manifest import describe, write_manifest

SIZES = (1_000, 10_000, 100_000, 1_000_000)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of every size.")] = 5,
    out: Annotated[Path | None, typer.Option(help="File for the figures, as JSON.")] = None,
) -> None:
    """Measures every size."""
    with tempfile.TemporaryDirectory() as folder:
        sets = {size: Path(folder) / str(size) for size in SIZES}
        for size, place in sets.items():
            grow(*write_caches(place, 256, per_shard=64), size // 256)
        found: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
        for _ in range(rounds):
            for size, place in sets.items():
                words = [sys.executable, "-c", f"from benchmarks.startup import start; start({str(place)!r})"]
                environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
                done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
                found[size].append(json.loads(done.stdout.splitlines()[-1]))
    figures = {
        size: {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]} for size, rows in found.items()
    }
    for size, row in figures.items():
        print(f"{size:>9,} records  " + "  ".join(f"{name} {value:g}" for name, value in row.items()))
    if out:
        out.write_text(json.dumps({str(size): row for size, row in figures.items()}, indent=2) + "\n", encoding="utf-8")
    print(f"ratio {figures[SIZES[-1]]['open_ms'] / figures[SIZES[0]]['open_ms']:.2f}x")


def grow(latents: Path, embeds: Path, times: int) -> None:
    """Repeats every row of the indices of two sets."""
    for folder in (latents, embeds):
        rows = [describe(path, 1) for path in folder.glob("empty.*")]
        for shard in sorted(folder.glob("*.tar")):
            index = shard.with_name(index_name(shard.name))
            repeated = np.repeat(np.load(index), times)
            np.save(index, repeated)
            rows += [describe(path, len(repeated)) for path in (shard, index)]
        write_manifest(folder, rows, {})
        assert len(Index(folder, "train")) == 256 * times


def start(place: str) -> None:
    """Opens the sets in a folder and gathers a batch; prints what that cost as JSON."""
    with tempfile.TemporaryDirectory() as other:  # so that imports do not count
        batches_of(CachedRecords(*write_caches(Path(other), 32), "train"), 32).of_step(0, range(32))
    before, began = private_bytes(), time.perf_counter()
    records = CachedRecords(Path(place) / "latents", Path(place) / "embeds", "train")
    opened = time.perf_counter()
    batches_of(records, 32).of_step(0, range(32))
    ended = time.perf_counter()
    figures = {
        "open_ms": 1000 * (opened - began),
        "batch_ms": 1000 * (ended - opened),
        "memory_MB": (private_bytes() - before) / 1e6,
    }
    print(json.dumps(figures))


def private_bytes() -> int:
    """Returns the resident memory of this process, without pages of files."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


if __name__ == "__main__":
    typer.run(main)
