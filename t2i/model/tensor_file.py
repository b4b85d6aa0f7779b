"""Tensor files: reads and writes safetensors with one tensor in memory at a time, for models larger than the memory."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_LONGEST_ENTRY_BYTES = 200
"""Bytes that the entry of a tensor takes in the header at most, besides its name."""


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files, by name; each is read when it is asked for.

    Raises:
        ValueError: if a file is not a complete safetensors file; names it.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        self._files: dict[str, Any] = {}
        self._metadata: dict[str, str] = {}
        for file in files:
            try:
                stored = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{file}: not a complete safetensors file ({' '.join(str(error).split())})") from None
            self._files |= dict.fromkeys(stored.keys(), stored)
            self._metadata |= stored.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the header."""
        return self._metadata

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, from the header."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Returns the type of a tensor as safetensors names it, such as `F16`, from the header."""
        return str(self._files[name].get_slice(name).get_dtype())


def write_tensors(file: Path, names: Iterable[str], read: Callable[[str], Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file; the same tensors and metadata always give the same bytes.

    The header comes first in the file, and has the sizes of all tensors. Its room is reserved, and it is written last, so that
    each tensor is made once.

    Args:
        file: the file.
        names: the names of all tensors.
        read: returns the tensor of a name.
        metadata: strings for the header.
    """
    wanted = sorted(names)
    stated = {"__metadata__": dict(sorted(metadata.items()))}
    room = len(json.dumps(stated)) + sum(len(json.dumps(name)) + _LONGEST_ENTRY_BYTES for name in wanted)
    room += -room % 8  # the data begins at a multiple of 8
    header: dict[str, object] = dict(stated)
    with file.open("wb") as out:
        out.seek(8 + room)
        written = 0
        for name in wanted:
            tensor = read(name).detach().to("cpu").contiguous()
            header[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [written, written := written + tensor.numel() * tensor.element_size()],
            }
            if tensor.numel():
                out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        out.seek(0)
        out.write(room.to_bytes(8, "little") + json.dumps(header).encode().ljust(room))
