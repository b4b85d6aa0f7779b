"""Probes: time the repeated operations of the stages on this machine, for a few seconds, with the real networks."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from t2i.data.batches import collate, micro_batches
from t2i.data.cached import CachedRecords
from t2i.data.crops import Geometry, Size
from t2i.data.manifest import describe, write_manifest
from t2i.data.prefetch import Prefetcher
from t2i.data.shards import pack, write_shard
from t2i.model.family import Family
from t2i.model.precision import Precision, computing_in
from t2i.model.pretrained import frozen
from t2i.model.runtime import Runtime
from t2i.tools.memory import is_out_of_memory
from t2i.train import engine
from t2i.train.engines.torch.engine import Prepared, prepare
from t2i.train.section import Train

_MOST_IN_A_BATCH = 8
"""Maximum number of images or captions per probe: on a CPU, larger batches hardly change the time per image."""


@dataclass(frozen=True)
class Encoders:
    """Outputs and times of the VAE and the text encoder."""

    size_px: Size
    moments: Tensor
    """The moments of one view."""
    conditioning: dict[str, Tensor]
    """The conditioning of one caption, without that of a view."""
    view_seconds: float
    caption_seconds: float
    decode_seconds: float
    """Time to decode the latents of one image to pixels."""


def seconds(work: Callable[[], object]) -> float:
    """Returns the shortest of a few runs in seconds; if the first run takes 5 s or more, there is only that one."""
    found: list[float] = []
    while not found or (found[0] < 5 and (len(found) < 2 or (sum(found) < 3 and len(found) < 8))):
        started = time.perf_counter()
        work()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


def each(work: Callable[[int], object], most: int) -> float:
    """Returns the seconds per item in a batch of up to `most` items, or of a single item if that takes more than 0.2 s."""
    alone = seconds(lambda: work(1))
    most = min(most, _MOST_IN_A_BATCH)
    if alone > 0.2 or most == 1:
        return alone
    try:
        return min(alone, seconds(lambda: work(most)) / most)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return alone


def probe_encoders(family: Family, runtime: Runtime, size_px: Size, caption: str) -> Encoders:
    """Encodes a random image and a caption, decodes the image, and times each."""
    device, most = runtime.torch_device(), runtime.encode_batch_size
    vae, text = family.load_vae(device), family.load_text(device)
    pixels = torch.rand(1, 3, *size_px).to(device) * 2 - 1
    moments = family.encode_pixels(vae, pixels)
    latents = moments.chunk(2, dim=1)[0] * family.scaling_factor
    conditioning = family.encode_prompts(text, [caption])
    return Encoders(
        size_px,
        moments[0].cpu(),
        {name: tensor[0].cpu() for name, tensor in conditioning.items()},
        each(lambda count: family.encode_pixels(vae, pixels.expand(count, -1, -1, -1)), most),
        each(lambda count: family.encode_prompts(text, [caption] * count), most),
        each(lambda count: family.decode_latents(vae, latents.expand(count, -1, -1, -1)), most),
    )


def probe_step(section: Train, runtime: Runtime, family: Family, encoders: Encoders, folder: Path) -> float:
    """Returns the seconds of a complete optimizer step, with EMA update; the trained weights are discarded.

    Args:
        section: the section `train`.
        runtime: the section `runtime`: processes, micro-batches, attention.
        family: the base.
        encoders: the moments and the conditioning of one record.
        folder: an empty folder, for a cache of one batch.
    """
    own = sum(map(len, micro_batches(section.batch_size, 0, runtime.processes, runtime.micro_batch_size)))
    section = section.model_copy(update={"batch_size": own, "steps": section.ema.every_steps, "epochs": None})
    cache = _cache(encoders, own, folder)
    if runtime.engine != "torch":
        return _compiled_step(engine.prepare(section, runtime, family, cache))
    prepared = prepare(section, runtime, family, cache)
    whole = prepared.prefetcher
    parts = {n: replace(prepared, prefetcher=Prefetcher(whole.batches, whole.places[:n], prepared.device)) for n in (1, 2)}

    def step(part: Prepared) -> None:
        while part.take_step(section.ema.every_steps - 1) is None:  # fp16's first gradients overflow; this step updates the EMA
            pass

    one, count = seconds(lambda: step(parts[1])), len(whole.places)
    more = max(0.0, seconds(lambda: step(parts[2])) - one) if count > 1 else 0.0
    for part in parts.values():
        part.prefetcher.close()
    return one + (count - 1) * more


def _compiled_step(prepared: engine.Prepared) -> float:
    """Returns the seconds of a step, with EMA update, of an engine that compiles it: the first step is not counted."""
    found = []
    for _ in range(4):
        started = time.perf_counter()
        figures = prepared.take_step(prepared.steps - 1)
        assert figures is not None
        float(figures.loss)  # waits for the device
        found.append(time.perf_counter() - started)
    prepared.close()
    return min(found[1:])


def probe_forward(family: Family, runtime: Runtime, precision: Precision, encoders: Encoders) -> float:
    """Returns the seconds per image of a UNet forward pass without gradients, as in sampling and validation."""
    device = runtime.torch_device()
    unet = frozen(family.load_unet(random=False), device)
    latents = encoders.moments.chunk(2)[0].to(device)
    of_view = family.view_conditioning(Geometry(encoders.size_px, (0, 0), False), (latents.shape[1], latents.shape[2]))

    def forward(count: int) -> None:
        conditioning = {name: t.to(device) for name, t in collate([encoders.conditioning | of_view] * count).items()}
        with torch.no_grad(), computing_in(precision, device):
            family.predict(unet, latents.expand(count, -1, -1, -1), torch.full((count,), 500, device=device), conditioning)

    return each(forward, runtime.encode_batch_size)


def _cache(encoders: Encoders, count: int, folder: Path) -> CachedRecords:
    """Writes a cache that holds one record `count` times."""
    latents, embeds = folder / "latents", folder / "embeds"
    image = {
        "moments": encoders.moments[None],
        "original_size": torch.tensor([encoders.size_px], dtype=torch.int32),
        "crop": torch.zeros(1, 2, dtype=torch.int32),
        "flipped": torch.zeros(1, dtype=torch.uint8),
    }
    packed = {latents: pack(image, "probe"), embeds: pack({k: t[None] for k, t in encoders.conditioning.items()}, "probe")}
    for path, content in packed.items():
        path.mkdir(parents=True)
        rows = write_shard(path / "train-00000.tar", {f"{n:08d}": ("safetensors", content) for n in range(count)})
        if path == embeds:
            (embeds / "empty.safetensors").write_bytes(content)
            rows.append(describe(embeds / "empty.safetensors", 1))
        write_manifest(path, rows, {})
    return CachedRecords(latents, embeds, "train")
