import io
import struct

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from millrace.data import codec
from millrace.data.columns import Columns, Field, Ragged, equal
from millrace.errors import CorruptError, VersionError

FIELDS = {
    "tokens": Field("uint8", (3,)),
    "inputs": Field("float32", (1, 2, 2)),
    "label": Field("int32"),
    "record": Field("uint64"),
    "text": Field("text"),
    "data": Field("bytes"),
}
SCHEMA = codec.build_schema(FIELDS)


def columns(num_samples: int, seed: int = 0) -> Columns:
    rng = np.random.default_rng(seed)
    return {
        name: Ragged.of(
            [
                rng.integers(65, 90, size, np.uint8).tobytes()
                for size in rng.integers(0, 9, num_samples)
            ]
        )
        if field.is_ragged
        else rng.integers(0, 200, (num_samples, *field.shape)).astype(field.dtype)
        for name, field in FIELDS.items()
    }


def decoded(frame: bytes, raw_bytes: int) -> bytes:
    return codec.decompress(frame, raw_bytes, codec.checksum(frame), "a frame")


@given(st.integers(1, 50), st.integers(0, 9))
def test_a_batch_decodes_to_what_was_encoded(num_samples: int, seed: int) -> None:
    made = columns(num_samples, seed)

    message = codec.encode_batch(made, SCHEMA)
    found = codec.decode_batch(message, FIELDS, SCHEMA, num_samples, "a frame")

    assert list(found) == list(FIELDS)
    for name, column in made.items():
        assert equal(found[name], column)
        assert FIELDS[name].is_ragged or found[name].dtype == column.dtype


def test_a_part_of_larger_columns_is_encoded_alone() -> None:
    made = columns(10)
    part = {name: column[3:7] for name, column in made.items()}

    found = codec.decode_batch(codec.encode_batch(part, SCHEMA), FIELDS, SCHEMA, 4, "a frame")

    assert equal(found["text"], made["text"][3:7])
    np.testing.assert_array_equal(found["inputs"], made["inputs"][3:7])


def test_the_same_columns_give_the_same_bytes() -> None:
    made = codec.compress(codec.encode_batch(columns(10), SCHEMA), 3)

    assert made == codec.compress(codec.encode_batch(columns(10), SCHEMA), 3)


@pytest.mark.parametrize("level", [1, 3, 19])
def test_a_frame_declares_its_size_and_carries_a_checksum(level: int) -> None:
    frame = codec.compress(b"content" * 100, level)

    parameters = zstandard.get_frame_parameters(frame)

    assert parameters.content_size == 700
    assert parameters.has_checksum
    assert decoded(frame, 700) == b"content" * 100


@pytest.mark.parametrize("promised", [0, 699, 701, 2**40])
def test_a_frame_of_another_size_than_promised_is_refused(promised: int) -> None:
    with pytest.raises(CorruptError, match="the frame declares 700 bytes"):
        decoded(codec.compress(b"content" * 100, 3), promised)


def test_a_frame_that_lies_about_its_size_is_refused_before_it_is_decoded() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)

    for frame in (compressor.compress(bytes(2**20)), codec.compress(bytes(2**20), 3)):
        with pytest.raises(CorruptError, match="the frame declares"):
            decoded(frame, 10)


def test_a_damaged_frame_never_decodes_to_other_bytes() -> None:
    raw = np.random.default_rng(0).bytes(300) * 3
    frame = codec.compress(raw, 3)

    for place in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[place // 8] ^= 1 << place % 8
        try:
            # Also with the checksum of the damaged frame: zstd proves the content against it.
            assert decoded(bytes(flipped), len(raw)) == raw
        except CorruptError:
            continue
    for length in range(len(frame)):
        with pytest.raises(CorruptError, match="decode a frame"):
            decoded(frame[:length], len(raw))


@pytest.mark.parametrize("extra", [b"\0", bytes(16), codec.compress(b"second", 3)])
def test_a_frame_with_something_behind_it_is_refused(extra: bytes) -> None:
    frame = codec.compress(b"content" * 100, 3)

    with pytest.raises(CorruptError, match="the frame ends in"):
        codec.decompress(frame + extra, 700, codec.checksum(frame), "a frame")
    with pytest.raises(CorruptError, match="unused data"):
        decoded(frame + extra, 700)


def test_another_frame_of_the_same_size_is_refused() -> None:
    frame, other = codec.compress(b"a" * 700, 3), codec.compress(b"b" * 700, 3)

    with pytest.raises(CorruptError, match="the frame ends in"):
        codec.decompress(other, 700, codec.checksum(frame), "a frame")


def test_a_frame_without_a_checksum_is_refused() -> None:
    with pytest.raises(CorruptError, match="checksum: False"):
        decoded(zstandard.ZstdCompressor(write_checksum=False).compress(b"a" * 700), 700)


def test_a_batch_of_another_number_of_samples_is_refused() -> None:
    message = codec.encode_batch(columns(5), SCHEMA)

    with pytest.raises(CorruptError, match=r"\(6 samples\): it holds 5 samples"):
        codec.decode_batch(message, FIELDS, SCHEMA, 6, "a frame")


@pytest.mark.parametrize("length", [0, 1, 8, 200])
def test_what_is_no_record_batch_is_refused(length: int) -> None:
    with pytest.raises(CorruptError, match="no record batch"):
        codec.decode_batch(bytes(length), FIELDS, SCHEMA, 5, "a frame")


def test_a_schema_tells_its_fields() -> None:
    found = pa.ipc.read_schema(pa.py_buffer(SCHEMA.serialize()))

    assert codec.fields_of(found, "a shard") == FIELDS


def test_a_schema_of_a_newer_format_is_refused_with_its_version() -> None:
    newer = SCHEMA.with_metadata({"millrace.format": "2"})

    with pytest.raises(VersionError, match="format version 2; this is Millrace for version 1"):
        codec.fields_of(newer, "a shard")


def test_the_first_frame_of_a_shard_tells_its_fields() -> None:
    frame = codec.compress(SCHEMA.serialize(), 3)

    assert codec.decode_schema(frame, "a shard") == FIELDS
    for damaged in (frame[:-1], codec.compress(b"no schema", 3), b"no frame"):
        with pytest.raises(CorruptError, match="a shard"):
            codec.decode_schema(damaged, "a shard")


@pytest.mark.parametrize("metadata", [None, {}, {"millrace.format": "x"}])
def test_a_schema_of_others_is_refused(metadata: dict[str, str] | None) -> None:
    with pytest.raises(CorruptError, match="none of ours"):
        codec.fields_of(SCHEMA.with_metadata(metadata), "a shard")


def told(frame: bytes, raw_bytes: int) -> tuple[int, int, int]:
    return len(frame), raw_bytes, codec.checksum(frame)


def test_the_seek_table_lists_every_frame() -> None:
    contents = [b"a" * 10, b"b" * 2000, b"c"]
    frames = [(codec.compress(content, 3), len(content)) for content in contents]

    table = codec.seek_table([told(*frame) for frame in frames])

    magic, size = struct.unpack_from("<II", table)
    assert (magic, size) == (0x184D2A5E, len(table) - 8)
    num_frames, descriptor, footer = struct.unpack_from("<IBI", table, len(table) - 9)
    assert (num_frames, descriptor, footer) == (3, 0x80, 0x8F92EAB1)
    for number, (frame, raw_bytes) in enumerate(frames):
        compressed, raw, checksum = struct.unpack_from("<III", table, 8 + 12 * number)
        assert (compressed, raw) == (len(frame), raw_bytes)
        assert checksum == struct.unpack("<I", frame[-4:])[0]


def test_frames_and_seek_table_are_one_zstd_stream() -> None:
    parts = [bytes(SCHEMA.serialize()), codec.encode_batch(columns(5), SCHEMA)]
    frames = [(codec.compress(part, 3), len(part)) for part in [*parts, codec.END_OF_STREAM]]

    whole = b"".join(frame for frame, _ in frames) + codec.seek_table(
        [told(*frame) for frame in frames]
    )

    raw = zstandard.ZstdDecompressor().stream_reader(whole, read_across_frames=True).read()
    assert raw == b"".join(parts) + codec.END_OF_STREAM
    table = pa.ipc.open_stream(io.BytesIO(raw)).read_all()
    assert table["label"].to_pylist() == columns(5)["label"].tolist()
