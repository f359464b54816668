import base64
import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.data import codec
from millrace.data.columns import Columns, Field, Ragged, cut, equal, join
from millrace.data.shard import Layout, Shard, ShardReader, ShardWriter, frame_ends
from millrace.deadline import Patience
from millrace.errors import CorruptError, StorageError
from millrace.storage import FsspecStorage

FIELDS = {"inputs": Field("float32", (2, 2)), "label": Field("int32"), "record": Field("uint64")}
SAMPLE_BYTES = 16 + 4 + 8
GOLDEN = Path(__file__).with_name("golden_shard.json")


def columns(num_samples: int) -> Columns:
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.integers(0, 9, (num_samples, 2, 2)).astype(np.float32),
        "label": rng.integers(0, 3, num_samples).astype(np.int32),
        "record": np.arange(num_samples, dtype=np.uint64),
    }


def write(storage: FsspecStorage, num_samples: int = 25, per_frame: int = 10) -> Shard:
    (shard,) = write_all(storage, FIELDS, [columns(num_samples)], per_frame * SAMPLE_BYTES)
    return shard


def write_all(
    storage: FsspecStorage,
    fields: dict[str, Field],
    parts: list[Columns],
    frame_bytes: int,
    shard_bytes: int = 2**26,
) -> list[Shard]:
    layout = Layout(3, frame_bytes, shard_bytes)
    writer = ShardWriter(storage, "p/shards", fields, split="train", layout=layout)
    for part in parts:
        writer.write(part)
    return writer.close(("a", "b", "c"))


def read(storage: FsspecStorage, shard: Shard, number: int) -> Columns:
    start = int(shard.frames.start[number])
    data = storage.read(shard.file.path, start, start + int(shard.frames.num_bytes[number]))
    return ShardReader(storage, FIELDS).decode(shard, number, data)


def read_all(storage: FsspecStorage, shard: Shard) -> Columns:
    return join(read(storage, shard, number) for number in range(len(shard.frames)))


def assert_equal(found: Columns, expected: Columns) -> None:
    for name, column in expected.items():
        assert equal(found[name], column), name


@pytest.fixture
def local(tmp_path: Path) -> FsspecStorage:
    return FsspecStorage(str(tmp_path), Patience(attempts=1))


def test_a_shard_reads_back_frame_by_frame(storage: FsspecStorage) -> None:
    shard = write(storage)

    assert shard.frames.num_samples.tolist() == [10, 10, 5]
    assert_equal(read_all(storage, shard), columns(25))
    assert_equal(read(storage, shard, 1), cut(columns(25), 10, 20))
    assert ShardReader(storage, FIELDS).prove(shard) == 3


def test_a_shard_is_named_by_its_bytes(local: FsspecStorage) -> None:
    shard = write(local)

    data = local.read(shard.file.path)

    assert hashlib.sha256(data).hexdigest() == shard.file.sha256
    assert shard.file.path == f"p/shards/train-{shard.file.sha256[:16]}.arrow.zst"
    assert shard.num_samples == 25


def test_a_sample_larger_than_a_frame_has_a_frame_of_its_own(local: FsspecStorage) -> None:
    shard = write(local, num_samples=3, per_frame=0)

    assert shard.frames.num_samples.tolist() == [1, 1, 1]
    assert_equal(read_all(local, shard), columns(3))


def test_a_shards_description_survives_json(local: FsspecStorage) -> None:
    told = write(local).to_dict()

    assert Shard.from_dict(json.loads(json.dumps(told))).to_dict() == told


def test_a_full_shard_is_followed_by_another(local: FsspecStorage) -> None:
    shards = write_all(local, FIELDS, [columns(500)], 50 * SAMPLE_BYTES, 100 * SAMPLE_BYTES)

    assert [shard.num_samples for shard in shards] == [100] * 5
    assert_equal(join(read_all(local, shard) for shard in shards), columns(500))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_shards_do_not_depend_on_how_their_samples_are_handed_in(
    local: FsspecStorage, sizes: list[int]
) -> None:
    texts = Ragged.of([b"x" * (i * 7919 % 60) for i in range(sum(sizes))])
    whole = {**columns(sum(sizes)), "text": texts}
    stops = np.cumsum(sizes).tolist()
    parts = [cut(whole, stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]

    fields = FIELDS | {"text": Field("text")}
    at_once = write_all(local, fields, [whole], 600, 2000)
    in_parts = write_all(local, fields, parts, 600, 2000)

    assert [shard.to_dict() for shard in in_parts] == [shard.to_dict() for shard in at_once]


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(0, 100))
def test_frames_take_what_fits_and_at_least_one_sample(sizes: list[int], frame_bytes: int) -> None:
    ends = frame_ends(np.array(sizes, np.int64), frame_bytes)

    starts = [0, *ends]
    for start, end in zip(starts, ends, strict=False):
        held = sum(sizes[start:end])
        assert end - start == 1 or held <= frame_bytes
        assert end == len(sizes) or held + sizes[end] > frame_bytes
    assert ends == sorted(set(ends))
    assert starts[-1] == len(sizes)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("label", np.zeros(2, np.int64)),
        ("inputs", np.zeros((2, 4), np.float32)),
        ("inputs", Ragged.of([b"", b""])),
    ],
)
def test_a_column_of_another_type_than_its_field_is_refused(
    local: FsspecStorage, name: str, column: object
) -> None:
    with pytest.raises(ValueError, match=f"column {name}"):
        write_all(local, FIELDS, [columns(2) | {name: column}], 100)


def test_a_shard_of_other_fields_is_not_taken_for_proven(local: FsspecStorage) -> None:
    shard = write(local)

    with pytest.raises(CorruptError, match="with the fields"):
        ShardReader(local, FIELDS | {"label": Field("uint32")}).prove(shard)


def test_an_error_while_writing_reaches_the_one_who_closes(local: FsspecStorage) -> None:
    Path(local.url, "p").write_text("a file where a folder is needed")
    writer = ShardWriter(local, "p/shards", FIELDS, split="train", layout=Layout(3, 100, 100))
    writer.write(columns(1))

    with pytest.raises(StorageError):
        writer.close()


def test_zstd_and_pyarrow_alone_open_a_shard(local: FsspecStorage, tmp_path: Path) -> None:
    zstd = shutil.which("zstd")
    if not zstd:
        pytest.skip("the zstd command is not installed")
    path = Path(local.url, write(local).file.path)

    subprocess.run([zstd, "-dq", str(path), "-o", str(tmp_path / "plain.arrow")], check=True)

    table = pa.ipc.open_stream(tmp_path / "plain.arrow").read_all()
    assert table["label"].to_pylist() == columns(25)["label"].tolist()
    assert table["inputs"].to_pylist() == columns(25)["inputs"].reshape(25, 4).tolist()


def test_pyarrow_alone_opens_a_shard(local: FsspecStorage) -> None:
    path = Path(local.url, write(local).file.path)

    with pa.input_stream(str(path), compression="zstd") as stream:
        table = pa.ipc.open_stream(stream).read_all()

    assert table["record"].to_pylist() == list(range(25))


def test_a_shard_tells_its_fields_by_itself(local: FsspecStorage) -> None:
    path = Path(local.url, write(local).file.path)

    with pa.input_stream(str(path), compression="zstd") as stream:
        schema = pa.ipc.open_stream(stream).schema

    assert codec.fields_of(schema, str(path)) == FIELDS


def test_golden_bytes_are_read_by_all_that_may_read_a_shard(local: FsspecStorage) -> None:
    # A shard that format version 1 wrote once. If this fails, published shards became unreadable.
    told = json.loads(GOLDEN.read_text())
    data = base64.b64decode(told["base64"])
    shard = Shard.from_dict(told["shard"])
    local.write(shard.file.path, data)
    fields = {name: Field(dtype, tuple(shape)) for name, (dtype, shape) in told["fields"].items()}

    assert ShardReader(local, fields).prove(shard) == 2
    with pa.input_stream(f"{local.url}/{shard.file.path}", compression="zstd") as stream:
        found = pa.ipc.open_stream(stream).read_all().to_pydict()
    found["image"] = [value.decode("latin-1") for value in found["image"]]
    assert found == told["samples"]


def test_a_shard_decodes_to_what_it_always_did(local: FsspecStorage) -> None:
    # The decoded bytes, as another zstd may compress them otherwise. If this fails, the format has
    # changed and shards that were published can no longer be taken as equal.
    data = local.read(write(local).file.path)

    raw = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()

    assert hashlib.sha256(raw).hexdigest() == DECODED


DECODED = "30fbc74f19862d15681419c2906040266c463fdb7a6820a9d619edc919376207"


def test_a_shard_with_any_bit_flipped_gives_the_right_samples_or_an_error(
    local: FsspecStorage,
) -> None:
    shard, expected = write(local), columns(25)
    whole = local.read(shard.file.path)
    rng = np.random.default_rng(0)
    told: list[str] = []

    for place in rng.choice(len(whole) * 8, 1500, replace=False).tolist():
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        Path(local.url, shard.file.path).write_bytes(flipped)
        try:
            assert_equal(read_all(local, shard), expected)
        except CorruptError as error:
            told.append(str(error))
        with pytest.raises(CorruptError):
            shard.file.read(local)
    assert all(f"of {shard.file.path} at byte" in text for text in told)
    assert len(told) > 700  # flips outside of the samples' frames do not matter to their reader


def test_a_truncated_shard_gives_the_right_samples_or_an_error(local: FsspecStorage) -> None:
    shard, expected = write(local), columns(25)
    whole = local.read(shard.file.path)
    stop = int(shard.frames.start[-1] + shard.frames.num_bytes[-1])

    for length in range(0, len(whole), 3):
        Path(local.url, shard.file.path).write_bytes(whole[:length])
        if length < stop:
            with pytest.raises(CorruptError, match=shard.file.path):
                read_all(local, shard)
        else:
            assert_equal(read_all(local, shard), expected)


def test_a_frame_longer_than_its_manifest_says_is_refused(local: FsspecStorage) -> None:
    shard = write(local)
    lying = replace(shard, frames=replace(shard.frames, raw_bytes=np.full(3, 10)))

    with pytest.raises(CorruptError, match="the frame declares"):
        read(local, lying, 0)


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_frame_of_another_length_than_its_manifest_says_is_refused(
    local: FsspecStorage, extra: int
) -> None:
    shard = write(local)
    start, size = int(shard.frames.start[0]), int(shard.frames.num_bytes[0])
    data = local.read(shard.file.path, start, start + size + extra)

    with pytest.raises(CorruptError, match=rf"frame 0 of .* {size + extra} bytes came"):
        ShardReader(local, FIELDS).decode(shard, 0, data)
