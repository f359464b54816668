"""Shards: files of zstd frames on the store, written whole and described frame by frame.

    samples --> frames of about frame_bytes --> compressed in threads --> shard full? written whole

A shard holds, each in a frame: the schema, record batches of samples, the end-of-stream mark; then
the seek table. docs/shard-format.md describes it byte by byte.
"""

import hashlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millrace.data import codec
from millrace.data.columns import Column, Columns, Field, Ragged, cut, join, num_rows
from millrace.data.workers import num_cores
from millrace.errors import CorruptError
from millrace.storage import HEAL, Storage, StoredFile

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How samples are laid out: zstd level, raw bytes in a frame, raw bytes in a shard."""

    level: int
    frame_bytes: int
    shard_bytes: int


@dataclass(frozen=True, eq=False)
class FrameTable:
    """The frames of a shard that hold samples, in order; they follow each other without a gap.

    Args:
        first: Offset of the first one in the shard, in bytes.
        num_bytes: Of each, compressed.
        raw_bytes: Of each, decoded.
        num_samples: In each.
        checksum: That each ends in.
    """

    first: int
    num_bytes: Counts
    raw_bytes: Counts
    num_samples: Counts
    checksum: Counts

    def __len__(self) -> int:
        return len(self.num_bytes)

    @property
    def start(self) -> Counts:
        """Offset of each in the shard, in bytes."""
        starts: Counts = self.first + np.cumsum(self.num_bytes) - self.num_bytes
        return starts

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest, by column: a shard has up to hundreds of frames."""
        return {name: getattr(self, name).tolist() for name in _COLUMNS} | {"first": self.first}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "FrameTable":
        """Inverse of `to_dict`."""
        return cls(int(value["first"]), *(np.array(value[name], np.int64) for name in _COLUMNS))


_COLUMNS = ("num_bytes", "raw_bytes", "num_samples", "checksum")


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard as its manifest describes it. `classes` names the numbers in its label column."""

    file: StoredFile
    split: str
    frames: FrameTable
    classes: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Samples in all frames."""
        return int(self.frames.num_samples.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {
            "file": dict(vars(self.file)),
            "split": self.split,
            "frames": self.frames.to_dict(),
            "classes": list(self.classes),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Shard":
        """Inverse of `to_dict`."""
        return cls(
            StoredFile.from_dict(value["file"]),
            value["split"],
            FrameTable.from_dict(value["frames"]),
            tuple(value["classes"]),
        )


@dataclass(frozen=True)
class _Coded:
    """A compressed frame and what it holds."""

    data: bytes
    raw_bytes: int
    num_samples: int = 0

    @property
    def told(self) -> tuple[int, int, int, int]:
        """Bytes, raw bytes, samples and checksum."""
        return len(self.data), self.raw_bytes, self.num_samples, codec.checksum(self.data)


class _Filling:
    """A shard while frames are added: one growing block of memory, not hundreds of small ones.

    Small blocks that outlive their neighbors leave holes, in which a gigabyte of base64 took 664 MB
    to pack.
    """

    def __init__(self, head: _Coded) -> None:
        self._data = bytearray(head.data)
        self._frames = [head.told]
        self.raw_bytes = 0
        """Of its samples."""

    def add(self, coded: _Coded) -> None:
        self._data += coded.data
        self._frames.append(coded.told)
        self.raw_bytes += coded.raw_bytes

    def close(self, tail: _Coded) -> tuple[bytes, FrameTable]:
        """The whole shard, and where its samples lie; call it once."""
        self.add(tail)
        num_bytes, raw_bytes, num_samples, checksums = np.array(self._frames, np.int64).T.copy()
        entries = zip(num_bytes.tolist(), raw_bytes.tolist(), checksums.tolist(), strict=True)
        self._data += codec.seek_table(list(entries))
        first, samples = int(num_bytes[0]), slice(1, -1)
        columns = (num_bytes, raw_bytes, num_samples, checksums)
        data = bytes(self._data)
        self._data.clear()  # or the shard would be held twice while it is written
        return data, FrameTable(first, *(column[samples] for column in columns))


class ShardWriter:
    """Packs the samples of one split into shards below a folder of the store.

    Where frames and shards end depends on the samples alone, not on how they were handed in. In
    memory are one shard, another on its way to the store, and two frames for each thread.

    Args:
        threads: Frames compressed at once; zstd and Arrow work outside the interpreter's lock.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        fields: Mapping[str, Field],
        *,
        split: str,
        layout: Layout,
        threads: int = 0,
    ) -> None:
        self._storage, self._folder, self._split = storage, folder, split
        self._fields, self._layout = dict(fields), layout
        self._schema = codec.build_schema(fields)
        self._entry_bytes = sum(field.entry_bytes for field in fields.values())
        self._pending: list[Columns] = []
        self._pending_samples = self._pending_bytes = 0
        self._threads = threads or num_cores()
        self._pool = ThreadPoolExecutor(self._threads + 1, thread_name_prefix="pack")
        self._coding: deque[Future[_Coded]] = deque()
        self._filling: _Filling | None = None
        self._upload: Future[tuple[StoredFile, FrameTable]] | None = None
        self._written: list[tuple[StoredFile, FrameTable]] = []

    @property
    def samples_per_frame(self) -> int:
        """Samples in a full frame; 0 where their lengths differ."""
        is_ragged = any(field.is_ragged for field in self._fields.values())
        return 0 if is_ragged else max(1, self._layout.frame_bytes // max(1, self._entry_bytes))

    def write(self, columns: Columns) -> None:
        """Add samples; full frames are compressed and full shards written as they arise.

        Raises:
            ValueError: A column is not of its field's dtype and shape.
        """
        for name, field in self._fields.items():
            _refuse_other(name, field, columns[name])
        self._pending.append(columns)
        self._pending_samples += num_rows(columns)
        self._pending_bytes += int(_sample_bytes(columns, self._fields).sum())
        if self._pending_bytes > self._layout.frame_bytes:
            self._cut_frames(whole_only=True)

    def close(self, classes: tuple[str, ...] = ()) -> list[Shard]:
        """Write what is left and describe all shards; call it once, also after an error."""
        try:
            if self._pending_samples:
                self._cut_frames(whole_only=False)
            while self._coding:
                self._take_coded()
            self._finish_shard()
            self._take_upload()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
        return [Shard(file, self._split, frames, classes) for file, frames in self._written]

    def abandon(self) -> None:
        """Stop without writing what is left."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _cut_frames(self, *, whole_only: bool) -> None:
        columns = self._pending[0] if len(self._pending) == 1 else join(self._pending)
        sizes = _sample_bytes(columns, self._fields)
        ends = frame_ends(sizes, self._layout.frame_bytes)
        if whole_only:
            ends = ends[:-1]  # the last frame may still grow
        start = 0
        for end in ends:
            self._code(cut(columns, start, end))
            start = end
        rest = cut(columns, start, len(sizes))
        self._pending = [rest]
        self._pending_samples = len(sizes) - start
        self._pending_bytes = int(sizes[start:].sum())

    def _code(self, columns: Columns) -> None:
        self._coding.append(self._pool.submit(self._coded_frame, columns))
        if len(self._coding) >= 2 * self._threads:
            self._take_coded()

    def _coded_frame(self, columns: Columns) -> _Coded:
        raw = codec.encode_batch(columns, self._schema)
        data = codec.compress(raw, self._layout.level)
        return _Coded(data, len(raw), num_rows(columns))

    def _take_coded(self) -> None:
        coded = self._coding.popleft().result()
        if self._filling is None:
            self._filling = _Filling(self._plain_frame(self._schema.serialize()))
        self._filling.add(coded)
        if self._filling.raw_bytes >= self._layout.shard_bytes:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._filling is None:
            return
        self._take_upload()
        filling, self._filling = self._filling, None
        self._upload = self._pool.submit(self._written_shard, filling)

    def _take_upload(self) -> None:
        if self._upload is not None:
            self._written.append(self._upload.result())
            self._upload = None

    def _written_shard(self, filling: _Filling) -> tuple[StoredFile, FrameTable]:
        data, frames = filling.close(self._plain_frame(_END))
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"{self._folder}/{self._split}-{sha256[:16]}.arrow.zst"
        return StoredFile.written(self._storage, path, data, sha256=sha256), frames

    def _plain_frame(self, raw: pa.Buffer) -> _Coded:
        return _Coded(codec.compress(raw, self._layout.level), len(raw))


_END = pa.py_buffer(codec.END_OF_STREAM)


def _refuse_other(name: str, field: Field, column: Column) -> None:
    if field.is_ragged != isinstance(column, Ragged):
        raise ValueError(f"column {name} is {type(column).__name__}, its field {field}")
    if isinstance(column, np.ndarray) and (column.dtype, column.shape[1:]) != (
        np.dtype(field.dtype),
        field.shape,
    ):
        found = f"{column.dtype} of shape {list(column.shape[1:])}"
        raise ValueError(f"column {name} holds {found}, its field is {field}")


def _sample_bytes(columns: Columns, fields: Mapping[str, Field]) -> Counts:
    """Raw bytes of each sample."""
    sizes = np.full(num_rows(columns), sum(f.entry_bytes for f in fields.values()), np.int64)
    for column in columns.values():
        if isinstance(column, Ragged):
            sizes += np.diff(column.offsets) + np.int32().itemsize
    return sizes


def frame_ends(sample_bytes: Counts, frame_bytes: int) -> list[int]:
    """Where frames end: each takes as many samples as fit into `frame_bytes`, at least one."""
    total = np.cumsum(sample_bytes)
    ends: list[int] = []
    start, before = 0, 0
    while start < len(total):
        end = int(np.searchsorted(total, before + frame_bytes, side="right"))
        start = max(end, start + 1)
        before = int(total[start - 1])
        ends.append(start)
    return ends


class ShardReader:
    """Reads shards of known fields, each frame proven before it is handed out."""

    def __init__(self, storage: Storage, fields: Mapping[str, Field]) -> None:
        self._storage, self._fields = storage, dict(fields)
        self._schema = codec.build_schema(fields)

    def decode(self, shard: Shard, number: int, data: codec.Buffer) -> Columns:
        """The columns of frame `number` from its compressed bytes.

        Raises:
            CorruptError: They are not what was written; it names shard, frame and offset.
        """
        frames = shard.frames
        what = f"frame {number} of {shard.file.path} at byte {frames.start[number]}"
        if len(data) != frames.num_bytes[number]:
            raise CorruptError(
                f"read {what} ({frames.num_bytes[number]} bytes)",
                f"{len(data)} bytes came",
                f"The shard is damaged. {HEAL}",
            )
        raw = codec.decompress(
            data, int(frames.raw_bytes[number]), int(frames.checksum[number]), what
        )
        samples = int(frames.num_samples[number])
        return codec.decode_batch(raw, self._fields, self._schema, samples, what)

    def prove(self, shard: Shard) -> int:
        """Read a whole shard back from the store: file digest, schema, every frame's content.

        Returns:
            Frames read back.

        Raises:
            CorruptError: What lies on the store is not what was written.
            VersionError: It is in a newer format.
        """
        data = memoryview(shard.file.read(self._storage))
        told = codec.decode_schema(data[: shard.frames.first], shard.file.path)
        if told != self._fields:
            asked = f"read {shard.file.path} with the fields {self._fields}"
            raise CorruptError(asked, f"it has {told}", HEAL)
        for number, start in enumerate(shard.frames.start.tolist()):
            end = start + int(shard.frames.num_bytes[number])
            self.decode(shard, number, data[start:end])
        return len(shard.frames)
