"""Moments: runs the VAE over batches of views, on a GPU while the next batch is copied there and the last one back."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from t2i.data.crops import Geometry
from t2i.data.members import Member
from t2i.data.pixels import normalized
from t2i.encode.pool import Views
from t2i.model.family import Family
from t2i.model.precision import Precision, computing_in, without_overflows


class _Computing(NamedTuple):
    """A batch whose moments are being computed."""

    batch: Views
    pixels: Float[Tensor, "b 3 h w"]
    moments: Float[Tensor, "b m _ _"]
    """On the CPU; complete once `done` is."""
    done: torch.cuda.Event | None


def encode_views(
    family: Family, vae: nn.Module, batches: Iterable[Views], precision: Precision, device: str
) -> Iterator[tuple[Member, Geometry, Float[Tensor, "m _ _"]]]:
    """Yields image, geometry and moments of every view; the moments that overflow in a reduced precision are those of fp32."""
    computing, pixels = deque[_Computing](), None
    for batch in batches:
        free = pixels if device == "cpu" else None  # new memory takes longer than the arithmetic
        pixels = normalized(_on_device(batch.levels, device), free)
        computing.append(_start(family, vae, batch, pixels, precision))
        if device == "cpu" or len(computing) > 1:
            yield from _finish(family, vae, computing.popleft(), precision)
    for left in computing:
        yield from _finish(family, vae, left, precision)


def _start(family: Family, vae: nn.Module, batch: Views, pixels: Float[Tensor, "b 3 h w"], precision: Precision) -> _Computing:
    with computing_in(precision, pixels.device):
        moments = family.encode_pixels(vae, pixels).float()
    if moments.device.type != "cuda":
        return _Computing(batch, pixels, moments.cpu(), None)
    host = torch.empty(moments.shape, pin_memory=True)
    host.copy_(moments, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return _Computing(batch, pixels, host, done)


def _on_device(levels: UInt8[Tensor, "b h w 3"], device: str) -> UInt8[Tensor, "b h w 3"]:
    return levels.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else levels.to(device)


def _finish(
    family: Family, vae: nn.Module, computing: _Computing, precision: Precision
) -> Iterator[tuple[Member, Geometry, Float[Tensor, "m _ _"]]]:
    if computing.done is not None:
        computing.done.synchronize()
    moments = computing.moments
    if precision != "fp32":
        found = without_overflows(
            {"moments": moments}, lambda: {"moments": family.encode_pixels(vae, computing.pixels).float().cpu()}
        )
        moments = found["moments"]
    for (member, geometry), its in zip(computing.batch.views, moments, strict=False):  # padding follows the last view
        yield member, geometry, its
