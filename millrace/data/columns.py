"""Columns of samples: arrays of a fixed shape, and ragged ones of bytes, text or coded images."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
RAGGED = ("bytes", "text", "image")


@dataclass(frozen=True)
class Field:
    """The type of a column.

    Args:
        dtype: A numpy dtype's name, or one of RAGGED for entries of any length: `bytes`, `text`
            (UTF-8), or `image` (JPEG or PNG, kept as it came).
        shape: Of one sample's entry; of an `image` once it is decoded, channels first.

    Raises:
        ValueError: The dtype is no number, or a size is not positive.
    """

    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.is_ragged and np.dtype(self.dtype).str[1] not in "iuf":
            raise ValueError(f"dtype {self.dtype}: whole and floating numbers are stored, or bytes")
        if any(size < 1 for size in self.shape):
            raise ValueError(f"shape {list(self.shape)}: every size must be 1 or more")

    @property
    def is_ragged(self) -> bool:
        """Whether entries differ in length."""
        return self.dtype in RAGGED

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry; 0 for a ragged column."""
        return 0 if self.is_ragged else np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Byte strings of any length, one after the other.

    Args:
        offsets: int64 (entries + 1); entry i is data[offsets[i]:offsets[i + 1]].
        data: uint8.
    """

    offsets: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, values: Sequence[bytes]) -> "Ragged":
        """From byte strings."""
        lengths = np.fromiter((len(value) for value in values), np.int64, len(values))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cls(offsets, np.frombuffer(b"".join(values), np.uint8))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, part: slice) -> "Ragged":
        if not isinstance(part, slice):
            raise TypeError("a ragged column is cut by slices; `take` and `tolist` give entries")
        start, stop, step = part.indices(len(self))
        assert step == 1, "a part of a ragged column is a run of entries"
        offsets = self.offsets[start : max(start, stop) + 1]
        return Ragged(offsets - offsets[0], self.data[offsets[0] : offsets[-1]])

    @property
    def nbytes(self) -> int:
        """Bytes of offsets and data."""
        return self.offsets.nbytes + self.data.nbytes

    @cached_property
    def arrow(self) -> pa.LargeBinaryArray:
        """The same memory as an Arrow array; kept, for Arrow looks at every offset to make it."""
        buffers = [None, pa.py_buffer(self.offsets), pa.py_buffer(self.data)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), buffers)

    @classmethod
    def from_arrow(cls, array: pa.Array) -> "Ragged":
        """The memory of a (large) binary or string array without nulls."""
        _, offsets, data = array.buffers()
        width = (
            np.int64
            if pa.types.is_large_binary(array.type) or (pa.types.is_large_string(array.type))
            else np.int32
        )
        found = np.frombuffer(offsets, width, len(array) + 1, array.offset * width().itemsize)
        whole = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        first, last = int(found[0]), int(found[-1])
        return cls(found.astype(np.int64) - first, whole[first:last])

    def take(self, indices: npt.NDArray[np.int64]) -> "Ragged":
        """The entries at `indices`, copied together."""
        return Ragged.from_arrow(self.arrow.take(pa.array(indices)))

    def tolist(self) -> list[bytes]:
        """Every entry as bytes."""
        whole = self.data.tobytes()
        return [whole[start:end] for start, end in pairwise(self.offsets.tolist())]

    def texts(self) -> list[str]:
        """Every entry as text; UnicodeDecodeError if one is not UTF-8."""
        whole = self.data.data
        return [str(whole[start:end], "utf-8") for start, end in pairwise(self.offsets.tolist())]


Column = Array | Ragged
Columns = dict[str, Any]
"""Name to column. Who asks for a column by name knows which of the two it is."""


def num_rows(columns: Mapping[str, Any]) -> int:
    """Samples in the columns."""
    return len(next(iter(columns.values())))


def size(columns: Mapping[str, Any]) -> int:
    """Bytes of all columns."""
    return sum(column.nbytes for column in columns.values())


def cut(columns: Mapping[str, Any], start: int, stop: int) -> Columns:
    """Samples [start, stop) of every column, as views."""
    return {name: column[start:stop] for name, column in columns.items()}


def take(columns: Mapping[str, Any], indices: npt.NDArray[np.int64]) -> Columns:
    """The samples at `indices` of every column, copied."""
    return {
        name: column.take(indices) if isinstance(column, Ragged) else column[indices]
        for name, column in columns.items()
    }


def join(parts: Iterable[Mapping[str, Any]]) -> Columns:
    """The samples of all parts, one after the other; copied, unless there is only one."""
    listed = list(parts)
    return {name: _join([part[name] for part in listed]) for name in listed[0]}


def _join(parts: Sequence[Column]) -> Column:
    if len(parts) == 1:
        return parts[0]
    ragged = [part for part in parts if isinstance(part, Ragged)]
    if not ragged:
        return np.concatenate(parts)  # type: ignore[arg-type]  # none of them is ragged
    firsts = np.cumsum([0, *(int(part.offsets[-1]) for part in ragged)])
    offsets = [part.offsets[1:] + first for part, first in zip(ragged, firsts, strict=False)]
    return Ragged(
        np.concatenate([np.zeros(1, np.int64), *offsets]),
        np.concatenate([part.data for part in ragged]),
    )


def equal(a: Column, b: Column) -> bool:
    """Whether two columns hold the same entries."""
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        return np.array_equal(a.offsets, b.offsets) and np.array_equal(a.data, b.data)
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b)


def run_starts(record: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """Where each run of equal entries begins: in a `record` column, the samples of each record."""
    return np.flatnonzero(np.concatenate([[True], record[1:] != record[:-1]]))


def smallest_unsigned(largest: int) -> str:
    """The name of the smallest unsigned dtype that holds numbers up to `largest`."""
    return next(
        name for name in ("uint8", "uint16", "uint32", "uint64") if largest <= np.iinfo(name).max
    )
