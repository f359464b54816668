"""Columns to zstd frames and back: each frame one Arrow record batch, decodable alone.

A shard decodes to one Arrow IPC stream: the schema in the first frame, a record batch per frame,
the end-of-stream mark in the last. So `zstd -d` and pyarrow open it without Millrace; see
docs/shard-format.md.
"""

import json
import math
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from millrace.data.columns import Columns, Field, Ragged
from millrace.errors import CorruptError, VersionError
from millrace.storage import HEAL

FORMAT_VERSION = 1
LARGEST_SCHEMA_BYTES = 2**20
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
Buffer = Any
"""Bytes, a memory view, or an Arrow buffer."""
_VERSION_KEY, _FIELD_KEY = b"millrace.format", b"millrace.field"
# zstd's contrib/seekable_format: a skippable frame whose footer ends in this number.
_SKIPPABLE_MAGIC, _SEEKABLE_MAGIC, _CHECKSUM_FLAG = 0x184D2A5E, 0x8F92EAB1, 0x80
_RAGGED_TYPES = {"bytes": pa.binary(), "text": pa.string(), "image": pa.binary()}
_FIX = f"The shard is damaged. {HEAL}"
_thread = threading.local()


def build_schema(fields: Mapping[str, Field]) -> pa.Schema:
    """Arrow schema: scalars as they are, arrays as fixed-size lists of their flat length.

    Its metadata hold the format's version, and each field's dtype and shape as Millrace names them.
    """

    def arrow_type(field: Field) -> pa.DataType:
        if field.is_ragged:
            return _RAGGED_TYPES[field.dtype]
        scalar = pa.from_numpy_dtype(np.dtype(field.dtype))
        return pa.list_(scalar, math.prod(field.shape)) if field.shape else scalar

    def arrow_field(name: str, field: Field) -> pa.Field:
        told = {_FIELD_KEY: json.dumps([field.dtype, list(field.shape)])}
        return pa.field(name, arrow_type(field), nullable=False, metadata=told)

    return pa.schema(
        [arrow_field(name, field) for name, field in fields.items()],
        metadata={_VERSION_KEY: str(FORMAT_VERSION)},
    )


def decode_schema(frame: Buffer, what: str) -> dict[str, Field]:
    """The fields that the first frame of a shard describes.

    Raises:
        VersionError: The shard was written in a newer format.
        CorruptError: It is no such frame.
    """
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        raw = decompress(frame, min(size, LARGEST_SCHEMA_BYTES), checksum(frame), what)
        return fields_of(pa.ipc.read_schema(pa.py_buffer(raw)), what)
    except (pa.ArrowException, OSError, EOFError, zstandard.ZstdError) as error:
        raise CorruptError(f"read the schema of {what}", str(error), _FIX) from error


def fields_of(schema: pa.Schema, what: str) -> dict[str, Field]:
    """The fields that a shard's schema describes; the inverse of `build_schema`.

    Raises:
        VersionError: The shard was written in a newer format.
        CorruptError: It is no schema of a shard.
    """
    try:
        refuse_newer(int((schema.metadata or {})[_VERSION_KEY]), what)
        told = {field.name: json.loads(field.metadata[_FIELD_KEY]) for field in schema}
        return {name: Field(dtype, tuple(shape)) for name, (dtype, shape) in told.items()}
    except (KeyError, TypeError, ValueError) as error:
        found = f"it is none of ours ({error})"
        raise CorruptError(f"read the schema of {what}", found, _FIX) from error


def refuse_newer(version: int, what: str) -> None:
    """Raise a VersionError if what is to be read has a newer format than this code knows."""
    if version > FORMAT_VERSION:
        raise VersionError(
            f"read {what}",
            f"it has shard format version {version}; this is Millrace for version {FORMAT_VERSION}",
            "Update Millrace, or pack the data again with this version",
        )


def encode_batch(columns: Columns, schema: pa.Schema) -> pa.Buffer:
    """One Arrow IPC record-batch message holding `columns`."""
    arrays = []
    for field in schema:
        column = columns[field.name]
        if isinstance(column, Ragged):
            arrays.append(_ragged_array(column, field.type))
            continue
        flat = pa.array(np.ascontiguousarray(column).reshape(-1))
        is_list = pa.types.is_fixed_size_list(field.type)
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type) if is_list else flat)
    return pa.RecordBatch.from_arrays(arrays, schema=schema).serialize()


def _ragged_array(column: Ragged, kind: pa.DataType) -> pa.Array:
    if column.offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"a frame holds at most 2 GiB of one column, not {column.offsets[-1]} B")
    buffers = [None, pa.py_buffer(column.offsets.astype(np.int32)), pa.py_buffer(column.data)]
    return pa.Array.from_buffers(kind, len(column), buffers)


def decode_batch(
    message: Buffer, fields: Mapping[str, Field], schema: pa.Schema, num_samples: int, what: str
) -> Columns:
    """The columns of a record-batch message, as read-only views on `message`."""
    try:
        batch = pa.ipc.read_record_batch(pa.py_buffer(message), schema)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise CorruptError(f"decode {what}", f"it is no record batch ({error})", _FIX) from error
    if batch.num_rows != num_samples:
        found = f"it holds {batch.num_rows} samples"
        raise CorruptError(f"decode {what} ({num_samples} samples)", found, _FIX)
    columns: Columns = {}
    for i, (name, field) in enumerate(fields.items()):
        array = batch.column(i)
        if field.is_ragged:
            columns[name] = Ragged.from_arrow(array)
            continue
        flat = array.values if field.shape else array
        columns[name] = flat.to_numpy(zero_copy_only=True).reshape(num_samples, *field.shape)
    return columns


def compress(raw: Buffer, level: int) -> bytes:
    """An independent zstd frame with its content size and checksum."""
    compressors = _thread.__dict__.setdefault("compressors", {})
    if level not in compressors:  # a context is dear to make and must stay in its thread
        compressors[level] = zstandard.ZstdCompressor(level=level, write_checksum=True)
    frame: bytes = compressors[level].compress(raw)
    return frame


def checksum(frame: Buffer) -> int:
    """The content checksum a frame ends in: the low half of the XXH64 of what it decodes to."""
    return int.from_bytes(memoryview(frame)[-4:], "little")


def decompress(frame: Buffer, raw_bytes: int, expected: int, what: str) -> bytes:
    """The content of a frame, proven to be the one that was written.

    Args:
        frame: One whole frame.
        raw_bytes: Bytes it must decode to; memory is taken only when it declares just as many.
        expected: The checksum it must end in. zstd proves the content against it.
        what: Names the frame in an error.

    Raises:
        CorruptError: It is damaged, cut, padded, another frame, or of another size.
    """
    asked = f"decode {what} ({raw_bytes} bytes, checksum {expected:08x})"
    try:
        told = zstandard.get_frame_parameters(frame)
        if told.content_size != raw_bytes or not told.has_checksum:
            found = f"the frame declares {told.content_size} bytes, checksum: {told.has_checksum}"
            raise CorruptError(asked, found, _FIX)
        if checksum(frame) != expected:
            found = f"the frame ends in {checksum(frame):08x}"
            raise CorruptError(asked, found, _FIX)
        if not hasattr(_thread, "decompressor"):
            _thread.decompressor = zstandard.ZstdDecompressor()
        content: bytes = _thread.decompressor.decompress(
            frame, max_output_size=raw_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise CorruptError(asked, str(error), _FIX) from error
    if len(content) != raw_bytes:
        raise CorruptError(asked, f"it decodes to {len(content)} bytes", _FIX)
    return content


def seek_table(frames: Sequence[tuple[int, int, int]]) -> bytes:
    """The trailing skippable frame that lists frames for seekable-zstd readers.

    Format: zstd contrib/seekable_format; the checksum is the low half of the content's XXH64,
    which is also what a frame with a checksum ends in.

    Args:
        frames: Bytes, raw bytes and checksum of each.
    """
    entries = b"".join(struct.pack("<III", *frame) for frame in frames)
    footer = struct.pack("<IBI", len(frames), _CHECKSUM_FLAG, _SEEKABLE_MAGIC)
    body = entries + footer
    return struct.pack("<II", _SKIPPABLE_MAGIC, len(body)) + body
