"""Reading shards from an S3 store as training does, against plain reads of the same shards with fsspec.

python -m benchmarks.store [FIGURES.json]

Starts moto's S3 server on this machine (`pip install 't2i[test]'`), writes synthetic caches of the size of Stable Diffusion 1.5
to it, and reads all shards in every epoch as training does: fetched into a cache of half their size, compared with their hashes
and gathered into batches, which are thrown away. The other side reads the same shards as often, one after the other, with
fsspec alone. Both take turns.

With --steps, also trains with the parameters of the checkout, in which `dvc repro` has encoded the dataset, from the store with
windows of one shard, and says how much of the time the steps wait for data.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import fsspec
import typer

from benchmarks.measured import ROOT
from benchmarks.synthetic import RECORD_BYTES, batches_of, write_caches
from t2i.core.params import load_section
from t2i.data.ahead import Ahead
from t2i.data.batches import Buffers
from t2i.data.bucket import Bucket
from t2i.data.cached import CachedRecords
from t2i.data.manifest import read_manifest
from t2i.data.order import Windows
from t2i.data.remote import Remote, ShardCache
from t2i.data.storage import MANIFEST, File
from t2i.model.family import open_family
from t2i.model.runtime import Runtime
from t2i.train.engines.torch.engine import prepare
from t2i.train.section import Train

_SECRETS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1"}
_URL = "s3://shards/benchmark"


def main(
    records: Annotated[int, typer.Option(help="Records of the synthetic caches.")] = 2048,
    per_shard: Annotated[int, typer.Option(help="Records per shard.")] = 128,
    epochs: Annotated[int, typer.Option(min=1, help="How often each side reads everything in a round.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="How often the sides take turns.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 32,
    steps: Annotated[int, typer.Option(help="Steps of training, or 0.")] = 0,
    out: Annotated[Path | None, typer.Argument(help="File for the figures, as JSON.")] = None,
) -> None:
    """Measures both sides in turn."""
    with tempfile.TemporaryDirectory() as temporary, _server():
        folder = Path(temporary)
        sets = write_caches(folder, records, per_shard)
        bucket = Bucket(_URL)
        files = [file for of_set in sets for file in read_manifest(of_set).files if file.is_shard]
        for of_set in sets:
            for file in read_manifest(of_set).files:
                Remote(bucket, ShardCache(folder=None, gb=1), verify=True).put(of_set / file.name, file)
        size, times = sum(file.bytes for file in files), dict[str, list[float]]()
        for _ in range(rounds):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            began = time.perf_counter()
            _train(sets, folder / "cache", size // 2, batch_size, epochs)
            times.setdefault("store", []).append(time.perf_counter() - began)
            began = time.perf_counter()
            plain = fsspec.filesystem("s3")
            for file in epochs * files:
                plain.cat_file(f"{_URL}/{file.sha256}.tar")
            times.setdefault("fsspec", []).append(time.perf_counter() - began)
        waited = _waited(folder / "training", steps) if steps else None
    rates = {side: epochs * size / statistics.median(values) / 1e6 for side, values in times.items()}
    for side, rate in rates.items():
        print(f"{side:10}{rate:8.0f} MB per second{rate * 1e6 / RECORD_BYTES:10,.0f} records per second")
    ratio = statistics.median(theirs / ours for ours, theirs in zip(times["store"], times["fsspec"], strict=True))
    if waited is not None:
        print(f"training waits for data {100 * waited:.2f} % of the time")
    if out:
        out.write_text(json.dumps({"rates": rates, "times": times, "bytes": size, "waited": waited}, indent=2))
    print(f"ratio {ratio:.2f}x")


def _train(sets: tuple[Path, Path], cache: Path, most: int, batch_size: int, epochs: int) -> None:
    """Gathers the batches of some epochs, with a cache of `most` bytes."""
    remote = Remote(Bucket(_URL), ShardCache(folder=str(cache), gb=most / 1e9), verify=True)
    records = CachedRecords(*sets, "train", remote)
    batches, buffers = replace(batches_of(records, batch_size), order=Windows(name="windows", shards=2)), Buffers()
    ahead = Ahead(batches)
    for step in range(epochs * len(records) // batch_size):
        ahead.at(step * batch_size, (step + 1) * batch_size - 1)
        batches.gather(step, range(batch_size), buffers)


def _waited(folder: Path, steps: int) -> float:
    """Trains some steps of the checkout's run from the store; returns the part of the time in which they wait for data."""
    params = ROOT / "params.yaml"
    section, runtime = load_section(params, "train", Train), load_section(params, "runtime", Runtime)
    bucket, files = Bucket(_URL), list[File]()
    for name in ("latents", "embeds"):
        (folder / name).mkdir(parents=True)
        for file in read_manifest(ROOT / "data" / name).files:
            path = Path(shutil.copy(ROOT / "data" / name / file.name, folder / name))
            files.append(file)
            Remote(bucket, runtime.shard_cache, verify=True).put(path, file)
        shutil.copy(ROOT / "data" / name / MANIFEST, folder / name)
    largest = sorted(file.bytes for file in files if file.is_shard)
    cache = ShardCache(folder=str(folder / "cache"), gb=sum(largest[-5:]) / 1e9)
    records = CachedRecords(folder / "latents", folder / "embeds", "train", Remote(bucket, cache, verify=True))
    windowed = section.model_copy(update={"order": Windows(name="windows", shards=1)})
    prepared = prepare(windowed, runtime, open_family(params, ROOT / "data/base", "dvc repro"), records)
    began = time.perf_counter()
    for step in range(steps):
        prepared.take_step(step)
    total = time.perf_counter() - began
    prepared.close()
    return prepared.prefetcher.waited_seconds / total


@contextmanager
def _server() -> Iterator[None]:
    """Serves S3 in a process of its own, with one empty bucket."""
    serve = (
        "import sys, threading; from moto.server import ThreadedMotoServer;"
        "server = ThreadedMotoServer('127.0.0.1', 0, verbose=False); server.start();"
        "print(server.get_host_and_port()[1], flush=True); threading.Event().wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", serve], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        os.environ.update(_SECRETS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{process.stdout.readline().strip()}"})
        fsspec.filesystem("s3").mkdir("shards")
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    typer.run(main)
