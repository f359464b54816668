import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
import zstandard

from millrace.data.columns import Columns, Field
from millrace.data.shard import Shard, ShardReader, ShardWriter
from millrace.deadline import Patience
from millrace.errors import CorruptError, NotFoundError
from millrace.storage import FsspecStorage

FIELDS = {"inputs": Field("float32", (2, 2)), "label": Field("int32"), "record": Field("uint64")}
SAMPLE_BYTES = 16 + 4 + 8


def columns(num_samples: int) -> Columns:
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.integers(0, 9, (num_samples, 2, 2)).astype(np.float32),
        "label": rng.integers(0, 3, num_samples).astype(np.int32),
        "record": np.arange(num_samples, dtype=np.uint64),
    }


def write(storage: FsspecStorage, num_samples: int = 25, per_frame: int = 10) -> Shard:
    writer = ShardWriter(FIELDS, "train", level=3, frame_bytes=per_frame * SAMPLE_BYTES)
    return writer.write(storage, "p/shards", columns(num_samples), ("a", "b", "c"))


def assert_equal(found: list[Columns], expected: Columns) -> None:
    for name, column in expected.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in found]), column)


@pytest.fixture
def local(tmp_path: Path) -> FsspecStorage:
    return FsspecStorage(str(tmp_path), Patience(attempts=1))


def test_a_shard_reads_back_frame_by_frame(storage: FsspecStorage) -> None:
    shard = write(storage)

    reader = ShardReader(storage, FIELDS)

    assert [frame.num_samples for frame in shard.frames] == [10, 10, 5]
    assert_equal(list(reader.frames(shard)), columns(25))
    assert_equal([reader.read(shard, 1)], {name: part[10:20] for name, part in columns(25).items()})


def test_a_shard_is_named_by_its_bytes(local: FsspecStorage) -> None:
    shard = write(local)

    data = local.read(shard.file.path)

    assert hashlib.sha256(data).hexdigest() == shard.file.sha256
    assert shard.file.path == f"p/shards/train-{shard.file.sha256[:16]}.arrow.zst"
    assert shard.num_samples == 25
    assert shard.raw_bytes == sum(frame.raw_bytes for frame in shard.frames)


def test_a_sample_larger_than_a_frame_has_a_frame_of_its_own(local: FsspecStorage) -> None:
    shard = write(local, num_samples=3, per_frame=0)

    assert [frame.num_samples for frame in shard.frames] == [1, 1, 1]
    assert_equal(list(ShardReader(local, FIELDS).frames(shard)), columns(3))


def test_a_shards_description_survives_json(local: FsspecStorage) -> None:
    shard = write(local)

    assert Shard.from_dict(json.loads(json.dumps(shard.to_dict()))) == shard


def test_zstd_and_pyarrow_alone_open_a_shard(local: FsspecStorage) -> None:
    data = local.read(write(local).file.path)

    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        table = pa.ipc.open_stream(io.BytesIO(reader.read())).read_all()

    assert table.num_rows == 25
    assert table["label"].to_pylist() == columns(25)["label"].tolist()
    assert table["inputs"].to_pylist() == columns(25)["inputs"].reshape(25, 4).tolist()


def test_pyarrow_alone_opens_a_shard(local: FsspecStorage) -> None:
    data = local.read(write(local).file.path)

    table = pa.ipc.open_stream(pa.CompressedInputStream(pa.BufferReader(data), "zstd")).read_all()

    assert table["record"].to_pylist() == list(range(25))


def test_a_shard_decodes_to_what_it_always_did(local: FsspecStorage) -> None:
    # The decoded bytes, as another zstd may compress them otherwise. If this fails, the format has
    # changed and shards that were published can no longer be taken as equal.
    data = local.read(write(local).file.path)

    raw = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()

    assert (
        hashlib.sha256(raw).hexdigest()
        == "ec7b7cd7b575969316b0f7e9a94ceb1cd170f843a4104b2d02f42ce3fe3c6137"
    )


def test_a_shard_with_any_bit_flipped_gives_the_right_samples_or_an_error(
    local: FsspecStorage,
) -> None:
    shard, expected = write(local), columns(25)
    whole = local.read(shard.file.path)
    start, stop = shard.frames[0].start, shard.frames[-1].start + shard.frames[-1].num_bytes
    reader, rng = ShardReader(local, FIELDS), np.random.default_rng(0)

    for place in rng.choice(len(whole) * 8, 1500, replace=False).tolist():
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        Path(local.url, shard.file.path).write_bytes(flipped)
        if start <= place // 8 < stop:
            with pytest.raises(CorruptError, match=rf"frame \d of {shard.file.path} at byte \d+"):
                list(reader.frames(shard))
        else:  # the schema, the end mark and the seek table serve other readers
            assert_equal(list(reader.frames(shard)), expected)
        with pytest.raises(CorruptError):
            shard.file.read(local)


def test_a_truncated_shard_gives_the_right_samples_or_an_error(local: FsspecStorage) -> None:
    shard, expected = write(local), columns(25)
    whole = local.read(shard.file.path)
    stop = shard.frames[-1].start + shard.frames[-1].num_bytes
    reader = ShardReader(local, FIELDS)

    for length in range(0, len(whole), 3):
        Path(local.url, shard.file.path).write_bytes(whole[:length])
        if length < stop:
            with pytest.raises(CorruptError, match=shard.file.path):
                list(reader.frames(shard))
        else:
            assert_equal(list(reader.frames(shard)), expected)


def test_a_missing_shard_is_named(storage: FsspecStorage) -> None:
    shard = write(storage)
    storage.delete(shard.file.path)

    with pytest.raises(NotFoundError, match=shard.file.path):
        ShardReader(storage, FIELDS).read(shard, 0)


def test_a_frame_longer_than_its_manifest_says_is_refused(local: FsspecStorage) -> None:
    shard = write(local)
    lying = replace(shard, frames=tuple(replace(frame, raw_bytes=10) for frame in shard.frames))

    with pytest.raises(CorruptError, match="the frame declares"):
        ShardReader(local, FIELDS).read(lying, 0)
