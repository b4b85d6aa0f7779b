"""Reader: returns records of shards as tensors that share the memory of the mapped files."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2i.data.index import mapped
from t2i.data.members import AGAIN, BLOCK, Member, is_header_of

_DTYPES = {
    "F16": torch.float16,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
}


class Field(NamedTuple):
    """Where a tensor lies in a safetensors record: bytes `start` to `end` after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class Stored(NamedTuple):
    """A safetensors record as it is stored."""

    data: np.ndarray
    """Its bytes after the header, not copied."""
    fields: dict[str, Field]

    def tensor(self, name: str) -> Tensor:
        """Returns a tensor of the record, without copying it."""
        dtype, shape, start, end = self.fields[name]
        if start == end:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.data, dtype=dtype, count=math.prod(shape), offset=start).view(shape)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the record by name, without copying them."""
        return {name: self.tensor(name) for name in self.fields}

    def row(self, name: str, row: int) -> np.ndarray:
        """Returns the bytes of one row of a tensor, without copying them."""
        _, shape, start, end = self.fields[name]
        size = (end - start) // shape[0]
        return self.data[start + row * size : start + (row + 1) * size]


class Reader:
    """Maps each shard once."""

    def __init__(self) -> None:
        self._maps: dict[Path, np.ndarray] = {}
        self._fields: dict[bytes, dict[str, Field]] = {}

    def content(self, member: Member) -> np.ndarray:
        """Returns the bytes of a record, without copying them.

        Raises:
            ValueError: if the shard does not have the record at the place that the index states.
        """
        whole, start = self._map(member.shard), member.offset
        if not is_header_of(whole[max(0, start - BLOCK) : max(0, start)].tobytes(), member) or start + member.size > len(whole):
            raise ValueError(f"{member.shard}: record {member.key}: not at byte {start}, where its index has it; {AGAIN}")
        return whole[start : start + member.size]

    def stored(self, member: Member) -> Stored:
        """Returns a safetensors record.

        Raises:
            ValueError: if the content is not a complete safetensors file; names the record.
        """
        return self._parsed(self.content(member), f"{member.shard}: record {member.key}")

    def tensors(self, member: Member) -> dict[str, Tensor]:
        """Returns the tensors of a safetensors record, without copying them; see `stored`."""
        return self.stored(member).tensors()

    def file(self, path: Path) -> Stored:
        """Returns a single safetensors file; see `stored`."""
        return self._parsed(self._map(path), str(path))

    def _map(self, path: Path) -> np.ndarray:
        if path not in self._maps:
            self._maps[path] = np.asarray(mapped(path))
        return self._maps[path]

    def _parsed(self, content: np.ndarray, place: str) -> Stored:
        try:
            end = 8 + int.from_bytes(content[:8].tobytes(), "little")
            header, data = content[8:end].tobytes(), content[end:]
            if header not in self._fields:
                entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
                self._fields[header] = {name: _field(**entry) for name, entry in entries.items()}
            fields = self._fields[header]
            if max((field.end for field in fields.values()), default=0) > len(data):
                raise ValueError(f"only {len(data)} bytes")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{place}: not a complete safetensors file ({error!r})") from None
        return Stored(data, fields)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a single safetensors file.

    Raises:
        ValueError: if the file is not a complete safetensors file.
    """
    return Reader().file(path).tensors()


def _field(dtype: str, shape: list[int], data_offsets: list[int]) -> Field:
    start, end = data_offsets
    if not 0 <= start <= end or min(shape, default=0) < 0 or end - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"{dtype} {shape} at {data_offsets}")
    return Field(_DTYPES[dtype], tuple(shape), start, end)
