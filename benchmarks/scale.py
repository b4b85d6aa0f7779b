"""Prints the tables of docs/scale.md: what 1, 10 and 100 million records take with Stable Diffusion 1.5 and SDXL.

python -m benchmarks.scale

Computes the figures of `t2i plan --base-size sd15 --records 1000000`, and so on; measures nothing.
"""

from collections.abc import Iterator

from t2i.core.files import in_bytes
from t2i.data.footprint import window_bytes
from t2i.tools.forecast import ORDER, RECORDS_PER_SHARD, Forecast, forecast_of
from t2i.tools.memory import figure
from t2i.tools.published import BaseSize

RECORDS = (1_000_000, 10_000_000, 100_000_000)
BASES: dict[str, tuple[BaseSize, int]] = {"SD 1.5, 512 px": ("sd15", 512), "SDXL, 1024 px": ("sdxl", 1024)}
TFLOPS = 100
IMAGES_PER_SECOND = 1000


def main() -> None:
    """Prints both tables."""
    print("\n\n".join(tables()))


def tables() -> tuple[str, str]:
    """Returns both tables: of whole datasets, and of one record."""
    found = {name: [forecast_of(base, records, size_px) for records in RECORDS] for name, (base, size_px) in BASES.items()}
    one = {name: of_base[0] for name, of_base in found.items()}
    return "\n".join(_by_number(found)), "\n".join(_by_base(one))


def _by_number(found: dict[str, list[Forecast]]) -> Iterator[str]:
    yield from _heading(f"{name}: {records // 1_000_000} M" for name in found for records in RECORDS)
    every = [forecast for of_base in found.values() for forecast in of_base]
    for name in every[0].sizes.sets():
        yield _row(name, [in_bytes(sum(shard.tar_bytes for shard in each.sizes.sets()[name])) for each in every])
    yield _row("indices", [in_bytes(sum(s.index_bytes for of in each.sizes.sets().values() for s in of)) for each in every])
    yield _row("all three", [in_bytes(each.sizes.bytes("train")) for each in every])
    yield _row("shards of each set", [f"{len(each.sizes.latents['train']):,}" for each in every])
    for what, times in (("encoding, h", _encoding), ("one epoch, h", _training)):
        hours = [each.dataset.images_per_epoch * times(each) / TFLOPS / 3600 for each in every]
        yield _row(f"{what} of a GPU at {TFLOPS} TFLOP/s", [figure(value) for value in hours])


def _by_base(found: dict[str, Forecast]) -> Iterator[str]:
    yield from _heading(found)
    each = list(found.values())
    of_record = [one.sizes.bytes("train") / one.dataset.images_per_epoch for one in each]
    texts = [sum(shard.bytes for shard in one.sizes.embeds["train"]) / one.sizes.bytes("train") for one in each]
    yield _row("bytes per record", [in_bytes(int(size)) for size in of_record])
    yield _row("of which text", [f"{share * 100:.0f} %" for share in texts])
    yield _row(f"reading for {IMAGES_PER_SECOND:,} images/s", [f"{in_bytes(int(IMAGES_PER_SECOND * s))}/s" for s in of_record])
    windows = [window_bytes(one.sizes.latents["train"], one.sizes.embeds["train"], ORDER) for one in each]
    yield _row(f"a window of {ORDER.shards} shards of {RECORDS_PER_SHARD} records", [in_bytes(size) for size in windows])
    yield _row("two windows", [in_bytes(2 * size) for size in windows])
    yield _row("TFLOP to encode a record", [f"{_encoding(one):.3g}" for one in each])
    yield _row("TFLOP to train on an image", [f"{_training(one):.3g}" for one in each])
    yield _row("without caching, an epoch takes longer by", [f"{100 * _encoding(one) / _training(one):.0f} %" for one in each])


def _encoding(one: Forecast) -> float:
    return (one.operations.view + one.operations.caption) / 1e12


def _training(one: Forecast) -> float:
    return one.operations.image / 1e12


def _heading(names: Iterator[str] | dict[str, Forecast]) -> Iterator[str]:
    columns = list(names)
    yield _row("", columns)
    yield "|" + "---|" * (len(columns) + 1)


def _row(name: str, values: list[str]) -> str:
    return f"| {name} | {' | '.join(values)} |".replace("|  |", "| |")


if __name__ == "__main__":
    main()
