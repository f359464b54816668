"""Shards: files of zstd frames on the store, written whole and read frame by frame."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from millrace.data import codec
from millrace.data.columns import Columns, Field
from millrace.errors import CorruptError
from millrace.storage import HEAL, Storage, StoredFile


@dataclass(frozen=True)
class Frame:
    """Where a frame lies in its shard and what proves it."""

    start: int
    num_bytes: int
    raw_bytes: int
    num_samples: int
    digest: str


@dataclass(frozen=True)
class Shard:
    """A shard as its manifest describes it. `classes` names the numbers in its label column."""

    file: StoredFile
    split: str
    frames: tuple[Frame, ...]
    classes: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Samples in all frames."""
        return sum(frame.num_samples for frame in self.frames)

    @property
    def raw_bytes(self) -> int:
        """Bytes of all frames once decoded."""
        return sum(frame.raw_bytes for frame in self.frames)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Shard":
        """Inverse of `to_dict`."""
        return cls(
            StoredFile.from_dict(value["file"]),
            value["split"],
            tuple(Frame(**frame) for frame in value["frames"]),
            tuple(value["classes"]),
        )


class ShardWriter:
    """Collects the samples of one split and writes them as shards below a folder of the store."""

    def __init__(
        self, fields: Mapping[str, Field], split: str, *, level: int, frame_bytes: int
    ) -> None:
        self._schema, self._split, self._level = codec.build_schema(fields), split, level
        sample_bytes = sum(
            np.dtype(field.dtype).itemsize * int(np.prod(field.shape, dtype=np.int64))
            for field in fields.values()
        )
        self.samples_per_frame = max(1, frame_bytes // sample_bytes)

    def write(
        self, storage: Storage, folder: str, columns: Columns, classes: tuple[str, ...]
    ) -> Shard:
        """Write all `columns` as one shard named by its digest."""
        num_samples = len(next(iter(columns.values())))
        parts = [self._frame(bytes(self._schema.serialize()))]
        frames, at = [], len(parts[0][0])
        for start in range(0, num_samples, self.samples_per_frame):
            stop = min(start + self.samples_per_frame, num_samples)
            part = {name: column[start:stop] for name, column in columns.items()}
            data, raw_bytes = self._frame(codec.encode_batch(part, self._schema))
            frames.append(Frame(at, len(data), raw_bytes, stop - start, codec.frame_digest(data)))
            parts.append((data, raw_bytes))
            at += len(data)
        parts.append(self._frame(codec.END_OF_STREAM))
        whole = b"".join(data for data, _ in parts) + codec.seek_table(parts)
        name = f"{self._split}-{hashlib.sha256(whole).hexdigest()[:16]}.arrow.zst"
        file = StoredFile.written(storage, f"{folder}/{name}", whole)
        return Shard(file, self._split, tuple(frames), classes)

    def _frame(self, raw: bytes) -> tuple[bytes, int]:
        return codec.compress(raw, self._level), len(raw)


class ShardReader:
    """Reads single frames of shards, each proven before it is decoded."""

    def __init__(self, storage: Storage, fields: Mapping[str, Field]) -> None:
        self._storage, self._fields = storage, fields
        self._schema = codec.build_schema(fields)

    def read(self, shard: Shard, number: int) -> Columns:
        """The columns of frame `number` of a shard; CorruptError names shard, frame and offset."""
        frame = shard.frames[number]
        what = f"frame {number} of {shard.file.path} at byte {frame.start}"
        data = self._storage.read(shard.file.path, frame.start, frame.start + frame.num_bytes)
        if codec.frame_digest(data) != frame.digest:
            raise CorruptError(
                f"read {what} (digest {frame.digest})",
                f"its digest is {codec.frame_digest(data)}",
                f"The shard is damaged. {HEAL}",
            )
        raw = codec.decompress(data, frame.raw_bytes, what)
        return codec.decode_batch(raw, self._fields, self._schema)

    def frames(self, shard: Shard) -> Iterator[Columns]:
        """All frames of a shard, in order."""
        return (self.read(shard, number) for number in range(len(shard.frames)))
