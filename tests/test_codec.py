import hashlib
import io
import struct

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from millrace.data import codec
from millrace.data.columns import Field
from millrace.errors import CorruptError

FIELDS = {
    "tokens": Field("uint8", (3,)),
    "inputs": Field("float32", (1, 2, 2)),
    "label": Field("int32"),
    "record": Field("uint64"),
}
SCHEMA = codec.build_schema(FIELDS)


def columns(num_samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 200, (num_samples, *field.shape)).astype(field.dtype)
        for name, field in FIELDS.items()
    }


@given(st.integers(1, 50), st.integers(0, 9))
def test_a_batch_decodes_to_what_was_encoded(num_samples: int, seed: int) -> None:
    made = columns(num_samples, seed)

    found = codec.decode_batch(codec.encode_batch(made, SCHEMA), FIELDS, SCHEMA)

    assert list(found) == list(FIELDS)
    for name, column in made.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], column)


def test_a_part_of_larger_columns_is_encoded_alone() -> None:
    made = columns(10)
    part = {name: column[3:7] for name, column in made.items()}

    found = codec.decode_batch(codec.encode_batch(part, SCHEMA), FIELDS, SCHEMA)

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
    assert codec.decompress(frame, 700, "a frame") == b"content" * 100


@pytest.mark.parametrize("promised", [0, 699, 701, 2**40])
def test_a_frame_of_another_size_than_promised_is_refused(promised: int) -> None:
    with pytest.raises(CorruptError, match="the frame declares 700 bytes"):
        codec.decompress(codec.compress(b"content" * 100, 3), promised, "a frame")


def test_a_frame_that_lies_about_its_size_is_refused_before_it_is_decoded() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)

    for frame in (compressor.compress(bytes(2**20)), codec.compress(bytes(2**20), 3)):
        with pytest.raises(CorruptError, match="the frame declares"):
            codec.decompress(frame, 10, "a frame")


def test_a_damaged_frame_never_decodes_to_other_bytes() -> None:
    raw = np.random.default_rng(0).bytes(300) * 3
    frame = codec.compress(raw, 3)

    for place in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[place // 8] ^= 1 << place % 8
        try:
            assert codec.decompress(bytes(flipped), len(raw), "a frame") == raw
        except CorruptError:
            continue
    for length in range(len(frame)):
        with pytest.raises(CorruptError, match="decode a frame"):
            codec.decompress(frame[:length], len(raw), "a frame")


def test_the_seek_table_lists_every_frame() -> None:
    contents = [b"a" * 10, b"b" * 2000, b"c"]
    frames = [(codec.compress(content, 3), len(content)) for content in contents]

    table = codec.seek_table(frames)

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

    whole = b"".join(frame for frame, _ in frames) + codec.seek_table(frames)

    raw = zstandard.ZstdDecompressor().stream_reader(whole, read_across_frames=True).read()
    assert raw == b"".join(parts) + codec.END_OF_STREAM
    table = pa.ipc.open_stream(io.BytesIO(raw)).read_all()
    assert table["label"].to_pylist() == columns(5)["label"].tolist()


def test_the_raw_bytes_of_a_batch_stay_what_they_were() -> None:
    # A published shard must stay readable: if this fails, the format has changed.
    made = codec.encode_batch(columns(4), SCHEMA)

    assert (
        hashlib.sha256(made).hexdigest()
        == "c65b25d31f4de9db64035b13583e2b5025d9dae0ea3da74a7721036cc97a5e47"
    )
    assert codec.frame_digest(b"content") == "b14a99127497aba3"
