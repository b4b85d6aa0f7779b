"""Loading the training data: records per second, beside a plain copy of the same bytes and webdataset's own reader.

python -m benchmarks.load

Works on synthetic caches of the size of Stable Diffusion 1.5 at 512 px, in a temporary folder, so in the system's page cache.
The ways take turns, a batch each, in the same order of records. The times are of the processor, not of the clock.

    copy          the bytes of the records, from where they lie in the mapped shards to memory that is kept
    gather        the same, as training does it: which records, views and captions, and the check of each tar header
    batch         a complete batch in fp32 on the CPU, with noise and epsilon
    webdataset    what webdataset reads of the same two sets in their order on disk, without a shuffle and without draws
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import webdataset
from safetensors.torch import load

from benchmarks.synthetic import RECORD_BYTES, batches_of, write_caches
from t2i.data.batches import Batches, Buffers
from t2i.data.cached import CachedRecords


def main(
    records: Annotated[int, typer.Option(min=64, help="Records of the caches; 184 kB each.")] = 4096,
    batch_size: Annotated[int, typer.Option(min=1, help="Records per batch.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Batches that every way loads.")] = 200,
    out: Annotated[Path | None, typer.Option(help="File for the figures, as JSON.")] = None,
) -> None:
    """Measures every way."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        latents, embeds = write_caches(Path(folder), records)
        batches, buffers = batches_of(CachedRecords(latents, embeds, "train"), batch_size), Buffers()
        ways: dict[str, Callable[[int], object]] = {
            "copy": copies(batches),
            "gather": lambda step: batches.gather(step, range(batch_size), buffers),
            "batch": lambda step: batches.of_step(step, range(batch_size)),
            "webdataset": read_by_webdataset(latents, embeds, batch_size),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for step in range(-records // batch_size, rounds):  # first an epoch, so that every page is mapped
            for name, way in ways.items():
                began = time.thread_time()
                way(step % rounds)
                if step >= 0:
                    seconds[name].append(time.thread_time() - began)
    figures = {name: figures_of(times, batch_size) for name, times in seconds.items()}
    for name, row in figures.items():
        print(f"{name:12}" + "".join(f"{label} {value:<10g}" for label, value in row.items()))
    made_with = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    if out:
        settings = {"records": records, "batch_size": batch_size, "rounds": rounds}
        out.write_text(json.dumps({"ways": figures, **settings, **made_with}, indent=2) + "\n", encoding="utf-8")
    print(f"ratio {figures['gather']['records_per_second'] / figures['copy']['records_per_second']:.2f}x")


def figures_of(times: list[float], batch_size: int) -> dict[str, float]:
    """Returns the median of the times with its neighbours, and the speed."""
    median = statistics.median(times)
    low, *_, high = statistics.quantiles(times, n=10)
    return {
        "ms": round(1000 * median, 3),
        "ms_p10": round(1000 * low, 3),
        "ms_p90": round(1000 * high, 3),
        "records_per_second": round(batch_size / median),
        "GB_per_second": round(batch_size * RECORD_BYTES / median / 1e9, 2),
    }


def copies(batches: Batches) -> Callable[[int], None]:
    """Returns a function that copies the bytes of a step's records, found beforehand, to kept memory."""
    records, size = batches.records, batches.batch_size
    rows = [(records.image(n).row("moments", 0), records.text(n).row("encoder_hidden_states", 0)) for n in range(len(records))]
    kept = [np.empty((size, len(row)), np.uint8) for row in rows[0]]

    def copy(step: int) -> None:
        for place, record in enumerate(orders[step]):
            for memory, row in zip(kept, rows[record], strict=True):
                memory[place] = row

    orders = [batches.epoch.records(range(step * size, (step + 1) * size), batches.seed) for step in range(1000)]
    return copy


def read_by_webdataset(latents: Path, embeds: Path, batch_size: int) -> Callable[[int], Any]:
    """Returns a function that gives the next batch of webdataset's reader."""

    def endless() -> Iterator[Any]:
        while True:
            images, texts = (
                iter(webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False).to_tuple("safetensors"))
                for folder in (latents, embeds)
            )
            for (image,), (text,) in zip(images, texts, strict=True):
                yield load(image)["moments"][0], load(text)["encoder_hidden_states"][0]

    stream = endless()

    def batch(step: int) -> list[torch.Tensor]:
        del step
        return [torch.stack(tensors) for tensors in zip(*(next(stream) for _ in range(batch_size)), strict=True)]

    return batch


if __name__ == "__main__":
    typer.run(main)
