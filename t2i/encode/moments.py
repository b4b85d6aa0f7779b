"""Moments: runs the VAE over batches of views, on a GPU while the next batch is copied there and the last one back."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from t2i.data.crops import Geometry
from t2i.data.pixels import normalized
from t2i.data.shards import Member
from t2i.encode.pool import Batch
from t2i.model.family import Family


class _Computing(NamedTuple):
    """A batch whose moments are being computed."""

    batch: Batch
    moments: Float[Tensor, "b m _ _"]
    """On the CPU; complete once `done` is."""
    done: torch.cuda.Event | None


def encode_views(
    family: Family, vae: nn.Module, batches: Iterable[Batch], device: str
) -> Iterator[tuple[Member, Geometry, Float[Tensor, "m _ _"]]]:
    """Yields image, geometry and moments of every view."""
    computing = deque[_Computing]()
    for batch in batches:
        computing.append(_start(family, vae, batch, device))
        if device == "cpu" or len(computing) > 1:
            yield from _finish(computing.popleft())
    for left in computing:
        yield from _finish(left)


def _start(family: Family, vae: nn.Module, batch: Batch, device: str) -> _Computing:
    moments = family.encode_pixels(vae, normalized(_on_device(batch.levels, device))).float()
    if moments.device.type != "cuda":
        return _Computing(batch, moments.cpu(), None)
    host = torch.empty(moments.shape, pin_memory=True)
    host.copy_(moments, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return _Computing(batch, host, done)


def _on_device(levels: UInt8[Tensor, "b h w 3"], device: str) -> UInt8[Tensor, "b h w 3"]:
    return levels.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else levels.to(device)


def _finish(computing: _Computing) -> Iterator[tuple[Member, Geometry, Float[Tensor, "m _ _"]]]:
    if computing.done is not None:
        computing.done.synchronize()
    for (member, geometry), moments in zip(computing.batch.views, computing.moments, strict=False):
        yield member, geometry, moments
