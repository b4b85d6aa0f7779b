"""Devices: all devices of all processes, among which JAX divides each batch; every device has all weights."""

import os
import socket
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import jax
import numpy as np
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from torch import Tensor, distributed

from t2i.model.runtime import Runtime
from t2i.train.engines.jax.settings import started

Array = Any
"""An array of JAX."""


def connect() -> None:
    """Connects JAX to that of the other processes of the group, if there is one; must come before JAX looks for devices."""
    if not distributed.is_initialized() or jax.distributed.is_initialized():
        return
    port = torch.tensor(_free_port())
    distributed.broadcast(port, 0)
    address = f"{os.environ['MASTER_ADDR']}:{int(port)}"
    jax.distributed.initialize(address, distributed.get_world_size(), distributed.get_rank())
    if jax.process_index() != distributed.get_rank():
        raise ValueError(
            f"RANK is {distributed.get_rank()}, but this is process {jax.process_index()} of JAX: start it with that "
            "`--node-rank`"
        )


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
    return port


class Devices:
    """The devices, in the order of the processes."""

    def __init__(self, runtime: Runtime) -> None:
        connect()
        started(runtime)
        ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self._mesh = Mesh(np.array(ordered), ("images",))
        self.everywhere = NamedSharding(self._mesh, PartitionSpec())
        """Where the weights are."""
        self.of_images = NamedSharding(self._mesh, PartitionSpec("images"))
        """Where a batch is: divided along its first axis."""

    def __len__(self) -> int:
        return int(self._mesh.size)

    def __str__(self) -> str:
        first = self._mesh.devices.flat[0]
        return f"JAX on {len(self)} x {first.device_kind}, which compile at the first step"

    def of_parts(self, parts: Array) -> Array:
        """Returns, in a compiled function, an array [parts, images, ...] divided along its second axis."""
        return jax.lax.with_sharding_constraint(parts, NamedSharding(self._mesh, PartitionSpec(None, "images")))

    def places(self, batch_size: int) -> range:
        """Returns the places in each batch that the devices of this process compute."""
        own = batch_size // jax.process_count()
        return range(jax.process_index() * own, (jax.process_index() + 1) * own)

    def copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        """Returns tensors, copied to every device."""
        return {name: self._placed(self.everywhere, tensor) for name, tensor in tensors.items()}

    def divided(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        """Returns the part of a batch that this process has, copied and divided among its devices."""
        return {name: self._placed(self.of_images, tensor) for name, tensor in tensors.items()}

    @staticmethod
    def _placed(sharding: NamedSharding, tensor: Tensor) -> Array:
        return jax.make_array_from_process_local_data(sharding, array_of(tensor))


def array_of(tensor: Tensor) -> np.ndarray:
    """Returns a copy of a tensor; of integers, in int32, as JAX has them. NumPy lacks bf16, which JAX brings."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return np.array(tensor.contiguous().view(torch.int16).numpy().view(jax.numpy.bfloat16))
    return np.array(tensor.int().numpy() if tensor.dtype == torch.int64 else tensor.numpy())


def tensor_of(array: Array) -> Tensor:
    """Returns a copy of an array that every device has."""
    return torch.from_numpy(np.array(array.addressable_data(0)))


def alone(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Returns arrays that every device has, on the first device of this process alone."""
    return {name: array.addressable_data(0) for name, array in arrays.items()}
