"""How random batches are if an epoch is shuffled as a whole (`train.order: {name: global}`) or in windows of a few shards.

python -m benchmarks.shuffle

Reads no files: it takes the batches of some epochs from t2i/data/order.py, for a set of 1,000 shards of 1,000 records.

    shards    the mean number of different shards in a batch
    sorted    the spread of a class's share of a batch, if the set is sorted by class: each shard has records of one class
    mixed     the same, if the classes are spread over the shards at random, as in sets that `fetch dataset` writes

A spread is the standard deviation over all batches and classes, divided by that of independent draws from the whole set: 1 is a
perfect shuffle.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from t2i.data.order import Epoch, Global, Order, Windows

SIZES = (1, 4, 16, 64, 256, 1000)


def main(
    shards: Annotated[int, typer.Option(min=2, help="Shards of the set.")] = 1000,
    records: Annotated[int, typer.Option(min=1, help="Records per shard.")] = 1000,
    classes: Annotated[int, typer.Option(min=2, help="Classes, which have the same number of shards.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Records per batch.")] = 256,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs whose batches are measured.")] = 3,
    out: Annotated[Path | None, typer.Option(help="File for the figures, as JSON.")] = None,
) -> None:
    """Measures every order."""
    orders: dict[str, Order] = {"global": Global(name="global")}
    orders |= {f"windows of {size}": Windows(name="windows", shards=size) for size in SIZES if size <= shards}
    shard_of = np.repeat(np.arange(shards), records)
    by_class = shard_of * classes // shards
    mixed = np.random.default_rng(0).permutation(by_class)
    found: dict[str, dict[str, float]] = {}
    for name, order in orders.items():
        epoch = Epoch([records] * shards, {}, order)
        whole = epochs * len(epoch) // batch_size * batch_size
        batches = np.array(epoch.records(range(whole), seed=0)).reshape(-1, batch_size)
        row = {"shards": different(shard_of[batches]), "sorted": spread(by_class[batches]), "mixed": spread(mixed[batches])}
        print(f"{name:<16}" + "".join(f"{label} {value:<9.4g}" for label, value in row.items()))
        found[name] = row
    if out:
        settings = {"shards": shards, "records": records, "classes": classes, "batch_size": batch_size, "epochs": epochs}
        out.write_text(json.dumps({"orders": found, **settings}, indent=2) + "\n", encoding="utf-8")


def different(batches: np.ndarray) -> float:
    """Returns the mean number of different values in a row."""
    ordered = np.sort(batches, axis=1)
    return float((np.diff(ordered, axis=1) > 0).sum(axis=1).mean() + 1)


def spread(batches: np.ndarray) -> float:
    """Returns the standard deviation of the classes' shares of the rows, relative to that of independent draws."""
    shares = np.stack([(batches == each).mean(axis=1) for each in range(int(batches.max()) + 1)])
    overall = shares.mean(axis=1)
    return float(np.sqrt(shares.var(axis=1).sum() / (overall * (1 - overall) / batches.shape[1]).sum()))


if __name__ == "__main__":
    typer.run(main)
