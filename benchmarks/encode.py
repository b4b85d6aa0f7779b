"""Encoding images with a pool of processes, against a serial loop, with a VAE that costs nothing.

python -m benchmarks.encode FIGURES.json

The serial loop decodes, resizes, encodes, packs and writes one shard after the other, in one process. Both read the same
shards of JPEGs, made on the spot, and write the same bytes. They take turns, so that whatever else the machine does slows both.
The start of the processes is not counted: it is the same for ten images and for a million. The milliseconds of processor time
per image say what the ratio would be on an idle machine.
"""

import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import psutil
import torch
import typer
from PIL import Image
from torch import Tensor

from benchmarks.busy import processor
from t2i.data.index import Index
from t2i.data.manifest import write_manifest
from t2i.data.members import Member
from t2i.data.reader import Reader
from t2i.data.shards import write_shard
from t2i.data.storage import Folders
from t2i.encode.images import packed, records_of
from t2i.encode.moments import encode_views
from t2i.encode.pool import Pool
from t2i.encode.shard_set import store_folder, whole_set
from t2i.encode.store import identity
from t2i.encode.views import EncodeImages, views

SHARD = 64


class Free:
    """A family whose VAE costs nothing."""

    def encode_pixels(self, vae: object, pixels: Tensor) -> Tensor:
        """Returns moments of the size that Stable Diffusion has, without looking at the pixels."""
        del vae
        return torch.zeros(1).expand(len(pixels), 8, pixels.shape[2] // 8, pixels.shape[3] // 8)


def main(
    out: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    images: Annotated[int, typer.Option(min=2 * SHARD, help="Number of images.")] = 512,
    side_px: Annotated[int, typer.Option(help="Side of the views, in pixels. The images are a fifth larger.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="How often each of the two runs.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 16,
) -> None:
    """Measures both in turn."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(1)
    section = EncodeImages(
        resolution_px=side_px,
        interpolation="lanczos",
        crop={"name": "center"},
        flip=False,
        background="#ffffff",
        seed=0,
        precision="fp32",
        psnr_records=1,
        min_psnr=0.0,
    )
    found: dict[str, list[Cost]] = {"serial": [], "pool": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["T2I_WORK_DIR"] = str(folder / "work")
        members = _jpegs(folder / "raw", images, side_px * 6 // 5)
        for number in range(rounds):
            outs = [folder / f"{name}-{number}" for name in found]
            found["serial"].append(_serial(section, members, batch_size, outs[0]))
            found["pool"].append(_pooled(section, members, batch_size, cores, outs[1]))
            if len({(out / "train-00000.tar").read_bytes() for out in outs}) > 1:
                raise SystemExit("the two write different bytes")
    ratios = [serial.seconds / pool.seconds for serial, pool in zip(found["serial"], found["pool"], strict=True)]
    cpu = {name: 1000 * statistics.median(cost.cpu_seconds for cost in costs) / images for name, costs in found.items()}
    figures: dict[str, Any] = {
        "processor": processor(),
        "cores": cores,
        "images": images,
        "side_px": side_px,
        "images_per_second": {name: [round(images / cost.seconds, 1) for cost in costs] for name, costs in found.items()},
        "cpu_ms_per_image": {name: round(value, 2) for name, value in cpu.items()},
        "idle_ratio": round(cores * cpu["serial"] / cpu["pool"], 2),
        "ratio": round(statistics.median(ratios), 2),
    }
    out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print("round   serial img/s   pool img/s   ratio")
    rates = figures["images_per_second"]
    for number, (serial, pool, ratio) in enumerate(zip(rates["serial"], rates["pool"], ratios, strict=True), 1):
        print(f"{number:5}   {serial:12.1f}   {pool:10.1f}   {ratio:5.2f}")
    print(
        f"processor time: {cpu['serial']:.1f} ms per image, {cpu['pool']:.1f} with the pool: {figures['idle_ratio']}x if idle"
    )
    print(f"ratio {figures['ratio']:.2f}x")


class Cost(NamedTuple):
    """What encoding all images takes."""

    seconds: float
    cpu_seconds: float
    """Processor time of all processes."""


@contextmanager
def measured(costs: list[Cost], others: Sequence[psutil.Process] = ()) -> Iterator[None]:
    """Appends the cost of the block, with that of other processes."""
    everyone = [psutil.Process(), *others]
    before, began = _cpu_seconds(everyone), time.perf_counter()
    yield
    costs.append(Cost(time.perf_counter() - began, _cpu_seconds(everyone) - before))


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(its.user + its.system for its in times))


def _jpegs(folder: Path, count: int, side_px: int) -> list[Member]:
    """Writes shards of JPEGs: smooth shapes with some noise, so that a file has about the size of a photo's."""
    folder.mkdir()
    rows = []
    for start in range(0, count, SHARD):
        contents = {f"{n:06d}": ("jpg", _jpeg(n, side_px)) for n in range(start, min(count, start + SHARD))}
        rows += write_shard(folder / f"train-{start // SHARD:05d}.tar", contents)
    write_manifest(folder, rows, {})
    return list(Index(folder, "train", ["jpg"]))


def _jpeg(number: int, side_px: int) -> bytes:
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side_px, side_px), 3)
    noisy = np.asarray(small, dtype=np.int16) + random.normal(0, 6, (side_px, side_px, 1)).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _wait_until_idle(processes: Sequence[psutil.Process]) -> None:
    before, now = -1.0, 0.0
    while now > before:
        time.sleep(1)
        before, now = now, _cpu_seconds(processes)


def _serial(section: EncodeImages, members: list[Member], batch_size: int, out: Path) -> Cost:
    reader, family, costs = Reader(), Free(), list[Cost]()
    out.mkdir()
    with measured(costs):
        for shard, group in groupby(members, key=lambda member: member.shard):
            contents, own = {}, list(group)
            for start in range(0, len(own), batch_size):
                batch = own[start : start + batch_size]
                seen = [view for member in batch for view in views(section, member, bytes(reader.content(member)))]
                moments = family.encode_pixels(None, torch.stack([view.pixels for view in seen]))
                rows = ((member, view.geometry, its) for member, view, its in zip(batch, seen, moments, strict=True))
                new = {member.key: record for member, record in zip(batch, records_of(rows), strict=True)}
                contents |= {key: ("safetensors", content) for key, content in packed(shard, new).items()}
            write_shard(out / shard.name, contents)
    return costs[0]


def _pooled(section: EncodeImages, members: list[Member], batch_size: int, processes: int, out: Path) -> Cost:
    costs: list[Cost] = []
    made_in = whole_set(store_folder("benchmark", {"out": out.name}, []), {}, out, Folders(), finished=False)
    with made_in as made, closing(Pool(section, batch_size=batch_size, processes=processes)) as pool:
        for _ in pool.batches(members[:1]):
            started = psutil.Process().children()
        _wait_until_idle(started)  # they import this file, and with it torch, unlike those of the command
        with measured(costs, started):
            records = records_of(encode_views(Free(), None, pool.batches(members), "fp32", "cpu"))
            for shard, group in groupby(members, key=lambda member: member.shard):
                new = {member.key: next(records) for member in group}
                found = made.find(shard.name, {key: identity(key) for key in new})
                made.add(shard.name, found, partial(packed, shard, new))
            made.wait()
    return costs[0]


if __name__ == "__main__":
    typer.run(main)
