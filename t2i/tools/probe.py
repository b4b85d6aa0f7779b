"""Probes: what the stages do over and over, timed for some seconds on this machine, with the networks that they will use."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.data.batches import CachedRecords, collate, micro_batches
from t2i.data.manifest import describe, write_manifest
from t2i.data.shards import pack, write_shard
from t2i.model.family import Family
from t2i.model.precision import Precision, computing_in
from t2i.model.runtime import Runtime
from t2i.tools.memory import is_out_of_memory
from t2i.train.prepared import prepare
from t2i.train.section import Train

_MOST_IN_A_BATCH = 8
"""Images or captions of a probe, at most: a CPU's time hardly hangs on it."""


@dataclass(frozen=True)
class Encoders:
    """What the VAE and the text encoder give, and take."""

    moments: Tensor
    """Of one view."""
    conditioning: dict[str, Tensor]
    """Of one caption."""
    view_seconds: float
    caption_seconds: float
    decode_seconds: float
    """One image from latents to pixels."""


def seconds(work: Callable[[], object]) -> float:
    """Returns the least seconds of some runs, of which the first warms up; of one alone where that takes five or more."""
    found: list[float] = []
    while not found or (found[0] < 5 and (len(found) < 2 or (sum(found) < 3 and len(found) < 8))):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


def each(work: Callable[[int], object], most: int) -> float:
    """Returns the seconds of one of a batch: of one alone where that takes long, else of as many as go through at once."""
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


def probe_encoders(family: Family, runtime: Runtime, resolution_px: int, caption: str) -> Encoders:
    """Encodes grey noise and a caption, and decodes it."""
    device, most = runtime.torch_device(), runtime.encode_batch_size
    vae, text = family.load_vae(device), family.load_text(device)
    pixels = torch.rand(1, 3, resolution_px, resolution_px).to(device) * 2 - 1
    moments = family.encode_pixels(vae, pixels)
    latents = moments.chunk(2, dim=1)[0] * family.scaling_factor
    conditioning = family.encode_prompts(text, [caption])
    return Encoders(
        moments[0].cpu(),
        {name: tensor[0].cpu() for name, tensor in conditioning.items()},
        each(lambda count: family.encode_pixels(vae, pixels.expand(count, -1, -1, -1)), most),
        each(lambda count: family.encode_prompts(text, [caption] * count), most),
        each(lambda count: family.decode_latents(vae, latents.expand(count, -1, -1, -1)), most),
    )


def probe_step(section: Train, runtime: Runtime, family: Family, encoders: Encoders, folder: Path) -> float:
    """Returns the seconds of an optimizer step with all that belongs to it; the weights are forgotten.

    Args:
        section: what decides its cost.
        runtime: processes, micro-batch, attention, ...
        family: the base.
        encoders: what a record holds.
        folder: an empty one, for a cache of one batch.
    """
    own = sum(map(len, micro_batches(section.batch_size, 0, runtime.processes, runtime.micro_batch_size)))
    section = section.model_copy(update={"batch_size": own, "steps": section.ema.every_steps, "epochs": None})
    prepared = prepare(section, runtime, family, _cache(encoders, own, folder))
    return seconds(lambda: prepared.take_step(section.ema.every_steps - 1))  # whose EMA is updated too


def probe_forward(family: Family, runtime: Runtime, precision: Precision, encoders: Encoders) -> float:
    """Returns the seconds of an image's pass through the UNet without gradients, as sampling and validation make it."""
    device = runtime.torch_device()
    unet: Any = family.load_unet(random=False).to(device).eval()
    latents = encoders.moments.chunk(2)[0].to(device)

    def forward(count: int) -> None:
        conditioning = {name: t.to(device) for name, t in collate([encoders.conditioning] * count).items()}
        with torch.no_grad(), computing_in(precision, device):
            family.predict(unet, latents.expand(count, -1, -1, -1), torch.full((count,), 500, device=device), conditioning)

    return each(forward, runtime.encode_batch_size)


def _cache(encoders: Encoders, count: int, folder: Path) -> CachedRecords:
    """Writes a cache of one record so many times over."""
    latents, embeds = folder / "latents", folder / "embeds"
    image = {"moments": encoders.moments[None], "flipped": torch.zeros(1, dtype=torch.uint8)}
    packed = {latents: pack(image, "probe"), embeds: pack({k: t[None] for k, t in encoders.conditioning.items()}, "probe")}
    for path, content in packed.items():
        path.mkdir(parents=True)
        rows = [write_shard(path / "train-00000.tar", {f"{n:08d}": ("safetensors", content) for n in range(count)})]
        if path == embeds:
            (embeds / "empty.safetensors").write_bytes(content)
            rows.append(describe(embeds / "empty.safetensors", 1))
        write_manifest(path, rows, {})
    return CachedRecords(latents, embeds, "train")
