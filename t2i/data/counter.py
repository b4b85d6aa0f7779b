"""Counter-based random numbers: each is a function of (seed, purpose, step, place, index), not of the numbers drawn before.

`scrambled` is the hash pcg4d of Jarzynski and Olano, "Hash Functions for GPU Rendering", JCGT 9(3), 2020: a bijection of 128
bits. It needs only additions, products, shifts and exclusive ors of int32, which NumPy, PyTorch and JAX wrap equally, so the
integers are equal on every device. Logarithms and sines differ between devices in the last bit, and so do the normals.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FACTOR, _INCREMENT = 1664525, 1013904223

Key = tuple[int, int, int, int]
"""Four int32, exclusive-ored with the counter: each (seed, purpose) has numbers of its own."""

Step = int | Tensor
"""The number of a step; or, for a function that is compiled for all steps, an int32 tensor []."""

Places = range | Tensor
"""Places in the batch of a step; or an int32 tensor [places]."""


@lru_cache(maxsize=1024)
def key_of(seed: int, *purpose: str | int) -> Key:
    """Returns the key of a seed and a purpose."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=16).digest()
    one, two, three, four = np.frombuffer(digest, "<i4").tolist()
    return one, two, three, four


def words(key: Key, step: Step, places: Any, indices: Any) -> tuple[Any, Any, Any, Any]:
    """Returns four int32 for each place and index.

    Args:
        key: of the seed and the purpose.
        step: below 2^31.
        places: int32 array or tensor; also decides, with `indices`, the shape, by broadcasting.
        indices: int32 array or tensor.
    """
    return scrambled(indices ^ key[0], places ^ key[1], step ^ key[2], key[3])


def scrambled(x: Any, y: Any, z: Any, w: Any) -> tuple[Any, Any, Any, Any]:
    """Returns the hash of four int32: arrays or tensors `x` and `y`, and numbers or arrays `z` and `w`."""
    x, y, z, w = (_stepped(part) for part in (x, y, z, w))
    x = x + y * w
    y = y + z * x
    z = x * y + z
    w = y * z + w
    x, y, z, w = (part ^ ((part >> 16) & 0xFFFF) for part in (x, y, z, w))
    x = x + y * w
    y = y + z * x
    z = z + x * y
    w = w + y * z
    return x, y, z, w


def _stepped(part: Any) -> Any:
    if isinstance(part, int):
        return (part * _FACTOR + _INCREMENT + 2**31) % 2**32 - 2**31
    return part * _FACTOR + _INCREMENT


def uniforms(key: Key, step: int, places: Sequence[int]) -> np.ndarray:
    """Returns four numbers in [0, 1) for each place, float64 [4, places]."""
    drawn = words(key, step, np.asarray(places, np.int32), np.zeros(1, np.int32))
    return np.stack(drawn).view(np.uint32) / 2.0**32


def words_on(
    device: torch.device | str, key: Key, step: Step, places: Places, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns `words` for the indices below `count`: int32 [places, count], on a device, without copying a range to it."""
    if isinstance(places, range):
        places = torch.arange(places.start, places.stop, places.step, dtype=torch.int32, device=device)
    return words(key, step, places[:, None], torch.arange(count, dtype=torch.int32, device=device))


def normals(key: Key, step: Step, places: Places, shape: Sequence[int], device: torch.device | str) -> Tensor:
    """Returns standard normal numbers [places, *shape] in fp32, by the transform of Box and Muller (1958).

    The largest magnitude is 5.8: the logarithm is of 24 bits.
    """
    count = math.prod(shape)
    x, y, z, w = words_on(device, key, step, places, -(-count // 4))
    drawn = []
    for length, angle in ((x, y), (z, w)):
        radius = (-2 * (_fraction(length) + 2**-24).log()).sqrt()
        turned = 2 * math.pi * _fraction(angle)
        drawn += [radius * turned.cos(), radius * turned.sin()]
    return torch.cat(drawn, dim=1)[:, :count].reshape(len(places), *shape)


def _fraction(word: Tensor) -> Tensor:
    """Returns the upper 24 bits as a number in [0, 1)."""
    return ((word >> 8) & 0xFFFFFF).float() * 2**-24
