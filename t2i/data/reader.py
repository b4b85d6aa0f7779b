"""Reader: returns records of shards as tensors that share the memory of the mapped files."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2i.data.members import AGAIN, BLOCK, Member, is_header_of
from t2i.data.storage import Folders, Storage

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

    whole: np.ndarray
    """The bytes of its shard, not copied."""
    start: int
    """Where the tensors begin in them."""
    fields: dict[str, Field]

    def tensor(self, name: str) -> Tensor:
        """Returns a tensor of the record, without copying it."""
        dtype, shape, start, end = self.fields[name]
        if start == end:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.whole, dtype=dtype, count=math.prod(shape), offset=self.start + start).view(shape)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the record by name, without copying them."""
        return {name: self.tensor(name) for name in self.fields}

    def row(self, name: str, row: int) -> np.ndarray:
        """Returns the bytes of one row of a tensor, without copying them."""
        _, shape, start, end = self.fields[name]
        size = (end - start) // shape[0]
        begin = self.start + start + row * size
        return self.whole[begin : begin + size]


class Reader:
    """Reads records.

    Args:
        storage: where their shards are; None: at their paths.
    """

    def __init__(self, storage: Storage | None = None) -> None:
        self._content = (storage or Folders()).content
        self._headers: dict[bytes, tuple[dict[str, Field], int]] = {}

    def content(self, member: Member) -> bytes:
        """Returns the bytes of a record. Raises as `stored`, if the shard does not have the record there."""
        return self._checked(member)[member.offset : member.offset + member.size].tobytes()

    def stored(self, member: Member) -> Stored:
        """Returns a safetensors record, without copying it.

        Raises:
            ValueError: if the shard does not have the record where the index has it, or the record is not a complete
                safetensors file; names both.
        """
        return self._parsed(self._checked(member), member.offset, member.offset + member.size, member.shard, member.key)

    def tensors(self, member: Member) -> dict[str, Tensor]:
        """Returns the tensors of a safetensors record, without copying them; see `stored`."""
        return self.stored(member).tensors()

    def file(self, path: Path) -> Stored:
        """Returns a single safetensors file; see `stored`."""
        whole = self._content(path)
        return self._parsed(whole, 0, len(whole), path)

    def _checked(self, member: Member) -> np.ndarray:
        """Returns the bytes of a record's shard, after comparing the record's tar header with the index."""
        whole, start = self._content(member.shard), member.offset
        if not BLOCK <= start <= len(whole) - member.size or not is_header_of(whole[start - BLOCK : start].tobytes(), member):
            raise ValueError(f"{member.shard}: record {member.key}: not at byte {start}, where its index has it; {AGAIN}")
        return whole

    def _parsed(self, whole: np.ndarray, start: int, end: int, *place: object) -> Stored:
        """Returns the safetensors file in some bytes of a shard; `place` names it."""
        try:
            size = int.from_bytes(whole[start : start + 8].tobytes(), "little")
            tensors = start + 8 + size
            header = whole[start + 8 : min(tensors, end)].tobytes()
            if header not in self._headers:
                entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
                fields = {name: _field(**entry) for name, entry in entries.items()}
                self._headers[header] = fields, max((field.end for field in fields.values()), default=0)
            fields, needed = self._headers[header]
            if tensors + needed > end:
                raise ValueError(f"{tensors + needed - end} bytes are missing")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{': record '.join(map(str, place))}: not a complete safetensors file ({error!r})") from None
        return Stored(whole, tensors, fields)


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
