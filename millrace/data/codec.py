"""Columns to zstd frames and back: each frame one Arrow record batch, decodable alone.

A shard decodes to one Arrow IPC stream: the schema in the first frame, a record batch per frame,
the end-of-stream mark in the last. So `zstd -d` and pyarrow open it without Millrace.
"""

import hashlib
import math
import struct
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import zstandard

from millrace.data.columns import Columns, Field
from millrace.errors import CorruptError
from millrace.storage import HEAL

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
# zstd's contrib/seekable_format: a skippable frame whose footer ends in this number.
_SKIPPABLE_MAGIC, _SEEKABLE_MAGIC, _CHECKSUM_FLAG = 0x184D2A5E, 0x8F92EAB1, 0x80


def build_schema(fields: Mapping[str, Field]) -> pa.Schema:
    """Arrow schema: scalars as they are, arrays as fixed-size lists of their flat length."""

    def arrow_type(field: Field) -> pa.DataType:
        scalar = pa.from_numpy_dtype(np.dtype(field.dtype))
        return pa.list_(scalar, math.prod(field.shape)) if field.shape else scalar

    return pa.schema(
        [pa.field(name, arrow_type(field), nullable=False) for name, field in fields.items()]
    )


def encode_batch(columns: Columns, schema: pa.Schema) -> bytes:
    """One Arrow IPC record-batch message holding `columns`."""
    arrays = []
    for field in schema:
        flat = pa.array(np.ascontiguousarray(columns[field.name]).reshape(-1))
        is_list = pa.types.is_fixed_size_list(field.type)
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type) if is_list else flat)
    return bytes(pa.RecordBatch.from_arrays(arrays, schema=schema).serialize())


def decode_batch(message: bytes, fields: Mapping[str, Field], schema: pa.Schema) -> Columns:
    """The columns of a record-batch message, as read-only views on `message`."""
    batch = pa.ipc.read_record_batch(pa.py_buffer(message), schema)
    columns = {}
    for i, (name, field) in enumerate(fields.items()):
        array = batch.column(i)
        flat = array.values if field.shape else array
        columns[name] = flat.to_numpy(zero_copy_only=True).reshape(batch.num_rows, *field.shape)
    return columns


def compress(raw: bytes, level: int) -> bytes:
    """An independent zstd frame with its content size and checksum."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compress(raw)


def decompress(frame: bytes, raw_bytes: int, what: str) -> bytes:
    """The content of a frame; CorruptError if it is damaged or of another size than promised."""
    asked = f"decode {what} ({raw_bytes} bytes)"
    try:
        told = zstandard.frame_content_size(frame)
        if told != raw_bytes:  # before decoding: a lying frame must not exhaust the memory
            raise CorruptError(asked, f"the frame declares {told} bytes", _FIX)
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=raw_bytes)
    except zstandard.ZstdError as error:
        raise CorruptError(asked, str(error), _FIX) from error


_FIX = f"The shard is damaged. {HEAL}"


def frame_digest(frame: bytes) -> str:
    """Short digest (hex, 64 bits) that proves a frame's compressed bytes."""
    return hashlib.blake2b(frame, digest_size=8).hexdigest()


def seek_table(frames: list[tuple[bytes, int]]) -> bytes:
    """The trailing skippable frame that lists (frame, raw bytes) for seekable-zstd readers.

    Format: zstd contrib/seekable_format; the checksum is the low half of the content's XXH64,
    which is also what a frame with a checksum ends in.
    """
    entries = b"".join(
        struct.pack("<II", len(frame), raw_bytes) + frame[-4:] for frame, raw_bytes in frames
    )
    footer = struct.pack("<IBI", len(frames), _CHECKSUM_FLAG, _SEEKABLE_MAGIC)
    body = entries + footer
    return struct.pack("<II", _SKIPPABLE_MAGIC, len(body)) + body
