"""MDS data sets: written by the library itself, and by a writer made from the description."""

import bz2
import gzip
import hashlib
import io
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from PIL import Image

from millrace.data.columns import Field, Ragged, equal, join
from millrace.data.mds import MdsSamples
from millrace.data.stream import Frames, Stream
from millrace.deadline import Patience
from millrace.errors import CorruptError, MillraceError, NotFoundError, SourceError
from millrace.storage import FsspecStorage
from tests.peer_fixtures import RunPeer

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": zstandard.compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
}
COLUMNS = {
    "id": ("int", 8),
    "text": ("str", None),
    "tokens": ("ndarray:uint16:2,3", 12),
    "weight": ("float32", 4),
    "zest": ("bytes", None),
}
Sample = Mapping[str, Any]


def draw_samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(count)
    return [
        {
            "id": i - 5,
            "text": "ü€😀"[: i % 4] * (i % 7),
            "tokens": rng.integers(0, 2**16, (2, 3), np.uint16),
            "weight": np.float32(rng.normal()),
            "zest": rng.bytes(int(rng.integers(0, 30))),
        }
        for i in range(count)
    ]


def encode(value: object) -> bytes:
    if isinstance(value, int):
        return struct.pack("<q", value)
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else np.asarray(value).tobytes()


def encode_shard(samples: Sequence[Sample]) -> bytes:
    """A shard as the format's description has it."""
    bodies = []
    for sample in samples:
        parts = {name: encode(sample[name]) for name in sorted(COLUMNS)}
        sizes = [len(parts[name]) for name in sorted(COLUMNS) if COLUMNS[name][1] is None]
        bodies.append(np.array(sizes, "<u4").tobytes() + b"".join(parts.values()))
    config = b'{"this": "is passed over"}'
    head = 4 * (len(bodies) + 2) + len(config)
    offsets = np.cumsum([head, *map(len, bodies)]).astype("<u4")
    return struct.pack("<I", len(bodies)) + offsets.tobytes() + config + b"".join(bodies)


def describe(name: str, data: bytes, hashes: Sequence[str]) -> dict[str, Any]:
    digests = {algorithm: hashlib.new(algorithm, data).hexdigest() for algorithm in hashes}
    return {"basename": name, "bytes": len(data), "hashes": digests}


def write_mds(
    folder: Path, shards: Sequence[Sequence[Sample]], *, compression: str = "", hashes: str = ""
) -> None:
    """A whole data set."""
    folder.mkdir(parents=True, exist_ok=True)
    names, listed = sorted(COLUMNS), []
    for number, samples in enumerate(shards):
        raw, name, zipped = encode_shard(samples), f"shard.{number:05}.mds", None
        if compression:
            data = COMPRESS[compression](raw)
            zipped = describe(f"{name}.{compression}", data, hashes.split())
            (folder / f"{name}.{compression}").write_bytes(data)
        else:
            (folder / name).write_bytes(raw)
        listed.append(
            {
                "version": 2, "format": "mds", "size_limit": None, "samples": len(samples),
                "compression": f"{compression}:7" if compression else None,
                "hashes": hashes.split(),
                "column_names": names,
                "column_encodings": [COLUMNS[name][0] for name in names],
                "column_sizes": [COLUMNS[name][1] for name in names],
                "raw_data": describe(name, raw, hashes.split()), "zip_data": zipped,
            }
        )  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": listed}))


def refuse_same(found: Mapping[str, Any], samples: Sequence[Sample]) -> None:
    """Assert that the columns are those of the samples."""
    assert found["id"].tolist() == [sample["id"] for sample in samples]
    assert found["text"].texts() == [sample["text"] for sample in samples]
    assert np.array_equal(found["tokens"], np.stack([s["tokens"] for s in samples]))
    assert np.array_equal(found["weight"], np.array([s["weight"] for s in samples]))
    assert found["zest"].tolist() == [sample["zest"] for sample in samples]


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Two plain shards without digests, below a store's folder `train`."""
    write_mds(tmp_path / "train", [draw_samples(40), draw_samples(3)])
    return tmp_path / "train"


def samples_of(folder: Path) -> MdsSamples:
    storage = FsspecStorage(str(folder.parent), Patience(attempts=1))
    return MdsSamples(storage, folder.name)


def whole(samples: Frames) -> dict[str, Any]:
    return join([samples.frame(number) for number in range(len(samples.samples_per_frame))])


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the index, or its first shard where the change is of one."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("hashes", ["", "md5 sha1 sha256"])
@pytest.mark.parametrize("compression", ["", *COMPRESS])
def test_all_columns_of_all_shards_are_read(tmp_path: Path, compression: str, hashes: str) -> None:
    shards = [draw_samples(40), [], draw_samples(3)]
    write_mds(tmp_path / "a", shards, compression=compression, hashes=hashes)

    samples = samples_of(tmp_path / "a")

    assert len(samples) == 43
    assert samples.fields == {
        "id": Field("int64"), "text": Field("text"), "tokens": Field("uint16", (2, 3)),
        "weight": Field("float32"), "zest": Field("bytes"),
    }  # fmt: skip
    assert samples.samples_per_frame.tolist() == [40, 3]
    refuse_same(whole(samples), [sample for shard in shards for sample in shard])


def test_it_is_read_from_every_store(storage: FsspecStorage, data_set: Path) -> None:
    for path in data_set.iterdir():
        storage.write(f"sets/{path.name}", path.read_bytes())

    refuse_same(whole(MdsSamples(storage, "sets")), [*draw_samples(40), *draw_samples(3)])


def test_a_large_plain_shard_is_cut_into_frames_fetched_by_range(
    data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millrace.data.mds.FRAME_BYTES", 500)

    samples = samples_of(data_set)
    changed = data_set / "shard.00000.mds"
    changed.write_bytes(changed.read_bytes()[:-1])  # the last frame alone needs that byte

    counts = samples.samples_per_frame
    assert len(counts) > 4
    assert counts.sum() == 43
    assert samples.frame_bytes.max() <= 600
    parts = [samples.frame(number) for number in range(len(counts) - 2)]
    refuse_same(join(parts), draw_samples(40)[: counts[:-2].sum()])
    with pytest.raises(CorruptError):
        samples.frame(len(counts) - 2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_data_set_is_streamed_in_our_order_on_any_world_size(
    data_set: Path, world_size: int
) -> None:
    ranks = [
        Stream(samples_of(data_set), 4, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]

    steps = [join(next(rank) for rank in ranks) for _ in range(10)]
    for rank in ranks:
        rank.close()

    expected = draw_samples(40) + draw_samples(3)
    drawn = join(steps)
    assert len(set(zip(drawn["id"].tolist(), drawn["zest"].tolist(), strict=True))) == 40
    for number, text, zest in zip(
        drawn["id"].tolist(), drawn["text"].texts(), drawn["zest"].tolist(), strict=True
    ):
        assert any(
            (number, text, zest) == (sample["id"], sample["text"], sample["zest"])
            for sample in expected
        )


def test_frames_are_read_by_many_threads_at_once(
    data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millrace.data.mds.FRAME_BYTES", 200)
    samples = samples_of(data_set)
    numbers = list(range(len(samples.samples_per_frame))) * 5

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(samples.frame, numbers))

    for number, frame in zip(numbers, found, strict=True):
        for name, column in samples.frame(number).items():
            assert equal(column, frame[name])


def test_columns_are_aligned_and_their_own(data_set: Path) -> None:
    for column in samples_of(data_set).frame(0).values():
        if isinstance(column, np.ndarray):
            assert column.flags.c_contiguous
            assert column.flags.aligned


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("compression", ["", *COMPRESS])
def test_a_flipped_bit_is_found_by_the_digest(tmp_path: Path, compression: str) -> None:
    write_mds(tmp_path / "a", [draw_samples(20)], compression=compression, hashes="sha1")
    (shard,) = (tmp_path / "a").glob("*.mds*")
    flip(shard, shard.stat().st_size // 2)

    with pytest.raises(CorruptError, match="sha1"):
        samples_of(tmp_path / "a").frame(0)


def test_a_digest_that_python_lacks_is_passed_over_and_the_size_is_not(data_set: Path) -> None:
    def tell(index: dict[str, Any]) -> None:
        index["shards"][0]["raw_data"]["hashes"] = {"xxh64": "0123456789abcdef"}

    change_index(data_set, tell)
    refuse_same(samples_of(data_set).frame(0), draw_samples(40))

    with (data_set / "shard.00000.mds").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptError, match="bytes"):
        samples_of(data_set).frame(0)


@pytest.mark.parametrize("compression", ["", *COMPRESS])
@pytest.mark.parametrize("left", [0, 3, 7, 100, -5, -1])
def test_a_truncated_shard_is_an_error(tmp_path: Path, compression: str, left: int) -> None:
    write_mds(tmp_path / "a", [draw_samples(20)], compression=compression)
    (shard,) = (tmp_path / "a").glob("*.mds*")
    data = shard.read_bytes()[:left]
    shard.write_bytes(data)
    with pytest.raises(CorruptError):
        samples_of(tmp_path / "a").frame(0)

    # The index tells the same size: now it is the content that does not add up.
    kind = "zip_data" if compression else "raw_data"
    change_index(tmp_path / "a", lambda index: index["shards"][0][kind].update(bytes=len(data)))
    with pytest.raises((CorruptError, SourceError)):
        samples_of(tmp_path / "a").frame(0)


@pytest.mark.parametrize("at", [0, 4, 8, 24, 80])
@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1])
def test_numbers_that_lie_in_a_shard_are_an_error(data_set: Path, at: int, value: int) -> None:
    shard = data_set / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[at : at + 4] = struct.pack("<I", value)
    shard.write_bytes(data)

    with pytest.raises(CorruptError, match=r"shard\.00000\.mds"):
        samples_of(data_set).frame(0)


def test_sizes_that_lie_in_a_sample_are_an_error(data_set: Path) -> None:
    shard = data_set / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4 * 8)
    for size in (1, 10**6, 2**32 - 1):
        data[start : start + 4] = struct.pack("<I", size)
        shard.write_bytes(data)
        with pytest.raises(CorruptError, match="sample 7 of them"):
            samples_of(data_set).frame(0)


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_compressed_shard_never_grows_beyond_what_the_index_says(
    tmp_path: Path, compression: str
) -> None:
    folder = tmp_path / "a"
    write_mds(folder, [draw_samples(20)], compression=compression)
    bomb = COMPRESS[compression](bytes(50 * 2**20))
    (folder / f"shard.00000.mds.{compression}").write_bytes(bomb)
    change_index(folder, lambda index: index["shards"][0]["zip_data"].update(bytes=len(bomb)))

    with pytest.raises(CorruptError, match="decompress"):
        samples_of(folder).frame(0)


@pytest.mark.parametrize(
    "path",
    ["../secret.mds", "/etc/passwd", "a/../../b", "", ".", "a//b", "s3://b/k", "..\\b", "\0"],
)
def test_a_shard_outside_the_folder_is_refused(data_set: Path, path: str) -> None:
    change_index(data_set, lambda index: index["shards"][1]["raw_data"].update(basename=path))

    with pytest.raises(SourceError, match="outside the folder"):
        samples_of(data_set)


def test_shards_may_lie_in_folders_below(data_set: Path) -> None:
    (data_set / "part").mkdir()
    (data_set / "shard.00001.mds").rename(data_set / "part" / "one.mds")
    change_index(
        data_set, lambda index: index["shards"][1]["raw_data"].update(basename="part/one.mds")
    )

    refuse_same(whole(samples_of(data_set)), [*draw_samples(40), *draw_samples(3)])


@pytest.mark.parametrize(("encoding", "size"), [
    ("pkl", None), ("complex64", 8), ("ndarray:object:3", 24), ("ndarray:uint8:0", 0),
    ("ndarray:uint8:-1", 1), ("ndarray:uint8:2:2", 4), ("list[pkl]", None), ("", None),
])  # fmt: skip
def test_an_encoding_that_is_not_read_is_refused_by_name(
    data_set: Path, encoding: str, size: int | None
) -> None:
    def tell(index: dict[str, Any]) -> None:
        for shard in index["shards"]:
            shard["column_encodings"][4], shard["column_sizes"][4] = encoding, size

    change_index(data_set, tell)

    with pytest.raises(SourceError, match=f"`zest` is .*{'pickle' if encoding == 'pkl' else ''}"):
        samples_of(data_set)


@pytest.mark.parametrize("compression", ["br", "snappy", "br:11"])
def test_a_compression_that_needs_more_is_refused_by_name(tmp_path: Path, compression: str) -> None:
    write_mds(tmp_path / "a", [draw_samples(2)], compression="gz")
    change_index(tmp_path / "a", lambda index: index["shards"][0].update(compression=compression))

    with pytest.raises(SourceError, match="Write it with one of zstd, gz, bz2"):
        samples_of(tmp_path / "a")


@pytest.mark.parametrize("change", [
    lambda index: index.update(version=1),
    lambda index: index["shards"][0].update(version=3),
    lambda index: index["shards"][0].update(format="json"),
    lambda index: index["shards"][0].update(samples=10**9),
    lambda index: index["shards"][0].update(samples="3"),
    lambda index: index["shards"][0].update(column_sizes=[8, None, 6, 4, None]),
    lambda index: index["shards"][0].update(column_sizes=[8, 5, 12, 4, None]),
    lambda index: index["shards"][0]["column_encodings"].pop(),
    lambda index: [shard["column_encodings"].pop() for shard in index["shards"]],
    lambda index: index["shards"][0]["raw_data"].update(bytes=-1),
    lambda index: index["shards"][0]["raw_data"].update(bytes=2**32),
    lambda index: index["shards"][0].update(raw_data=None),
    lambda index: index.pop("shards"),
    lambda index: index.update(shards=[]),
    lambda index: index.update(shards=[3]),
])  # fmt: skip
def test_an_index_that_contradicts_itself_is_refused(
    data_set: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    change_index(data_set, change)

    with pytest.raises(SourceError, match="read the MDS data set"):
        samples_of(data_set)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 10**5])
def test_what_is_no_index_is_refused(data_set: Path, text: str) -> None:
    (data_set / "index.json").write_text(text)

    with pytest.raises(SourceError, match=r"index\.json is no index"):
        samples_of(data_set)


def test_a_folder_without_an_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"index\.json"):
        samples_of(tmp_path / "nothing")


def test_random_damage_never_passes_for_another_error(data_set: Path) -> None:
    rng = np.random.default_rng(1)
    shard = data_set / "shard.00000.mds"
    good = shard.read_bytes()
    for _ in range(300):
        data = bytearray(good)
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
        shard.write_bytes(data)
        try:
            found = samples_of(data_set).frame(0)
        except MillraceError:
            continue
        assert {len(column) for column in found.values()} == {40}


def test_the_documented_snippet_reads_a_data_set(
    data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "exchange.md").read_text()
    found = re.search(r"<!-- mds -->\n```python\n(.*?)```\n<!-- /mds -->", page, re.DOTALL)
    assert found is not None
    program = found[1].replace("s3://bucket/data", str(data_set.parent)).replace("mds/", "")

    exec(program, {})  # noqa: S102  our own documentation

    assert capsys.readouterr().out.splitlines()[:3] == [
        "43 samples in 2 frames", "id int64 ()", "text text ()",
    ]  # fmt: skip


PEER_WRITES = """
import json, sys
import cpu_torchvision
import numpy as np
from decimal import Decimal
from PIL import Image
from streaming import MDSWriter

out, options = sys.argv[1], json.loads(sys.argv[2])
columns = {
    "count": "int", "small": "uint8", "half": "float16", "signed": "int16", "exact": "float64",
    "tokens": "ndarray:uint16:32", "pixels": "ndarray:float32:3,2,2", "varying": "ndarray:int32",
    "text": "str", "raw": "bytes", "facts": "json", "long": "str_int", "money": "str_decimal",
    "photo": "jpeg", "drawing": "png", "picture": "pil",
}
rng = np.random.default_rng(0)
with MDSWriter(out=out, columns=columns, **options) as writer:
    for i in range(300):
        image = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        writer.write({
            "count": -i, "small": i % 256, "half": i / 8, "signed": -i, "exact": i / 3,
            "tokens": np.arange(i, i + 32).astype(np.uint16),
            "pixels": np.full((3, 2, 2), i, np.float32),
            "varying": np.arange(1 + i % 5, dtype=np.int32),
            "text": "é" * (i % 9), "raw": bytes([i % 256]) * (i % 4), "facts": {"i": i},
            "long": 10**30 + i, "money": Decimal(i) / 8,
            "photo": image, "drawing": image, "picture": image,
        })
"""


@pytest.mark.peers
@pytest.mark.parametrize("options", [
    {},
    {"size_limit": 20_000},
    {"compression": "zstd:7", "hashes": ["sha1", "xxh64"], "size_limit": 50_000},
    {"compression": "gz", "hashes": ["xxh3_64"]},
    {"compression": "bz2", "hashes": ["blake2b", "md5", "sha256"]},
    {"hashes": ["sha256"], "size_limit": 30_000},
])  # fmt: skip
def test_what_the_library_writes_is_read(
    run_peer: RunPeer, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millrace.data.mds.FRAME_BYTES", 2**14)
    run_peer(PEER_WRITES, tmp_path / "set", json.dumps(options))

    samples = samples_of(tmp_path / "set")
    found = whole(samples)

    i = np.arange(300)
    assert len(samples) == 300
    assert len(samples.samples_per_frame) > 1 or options.get("hashes")
    assert equal(found["count"], -i)
    assert equal(found["small"], (i % 256).astype(np.uint8))
    assert equal(found["half"], (i / 8).astype(np.float16))
    assert equal(found["signed"], -i.astype(np.int16))
    assert equal(found["exact"], i / 3)
    assert equal(found["tokens"], (i[:, None] + np.arange(32)).astype(np.uint16))
    assert equal(found["pixels"], np.broadcast_to(i[:, None, None, None], (300, 3, 2, 2)))
    assert [decode_varying(part) for part in found["varying"].tolist()] == [
        list(range(1 + k % 5)) for k in i
    ]
    assert found["text"].texts() == ["é" * (k % 9) for k in i]
    assert found["raw"].tolist() == [bytes([k % 256]) * (k % 4) for k in i]
    assert [json.loads(text) for text in found["facts"].texts()] == [{"i": k} for k in i]
    assert [int(text) for text in found["long"].texts()] == [10**30 + int(k) for k in i]
    assert [float(text) for text in found["money"].texts()] == (i / 8).tolist()
    assert samples.fields["photo"] == samples.fields["drawing"] == Field("image")
    drawn = [pixels_of(data) for data in found["drawing"].tolist()]
    rng = np.random.default_rng(0)
    assert all(np.array_equal(one, rng.integers(0, 256, (4, 5, 3), np.uint8)) for one in drawn)
    assert pixels_of(found["photo"].tolist()[0]).shape == (4, 5, 3)
    assert [data[15:] for data in found["picture"].tolist()] == [one.tobytes() for one in drawn]


def decode_varying(data: bytes) -> list[int]:
    """The documented layout of arrays of varying shape, here of one dimension below 256."""
    assert data[0] == 4
    values: list[int] = np.frombuffer(data, "<i4", offset=2).tolist()
    assert data[1] == len(values)
    return values


def pixels_of(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.peers
@pytest.mark.parametrize("compression", ["br", "snappy"])
def test_what_the_library_compresses_otherwise_is_refused(
    run_peer: RunPeer, tmp_path: Path, compression: str
) -> None:
    run_peer(PEER_WRITES, tmp_path / "set", json.dumps({"compression": compression}))

    with pytest.raises(SourceError, match=f"compressed with `{compression}`"):
        samples_of(tmp_path / "set")


PEER_PICKLES = """
import sys
import cpu_torchvision
from streaming import MDSWriter

with MDSWriter(out=sys.argv[1], columns={"thing": "pkl"}) as writer:
    writer.write({"thing": {1, 2}})
"""


@pytest.mark.peers
def test_a_pickle_that_the_library_writes_is_refused(run_peer: RunPeer, tmp_path: Path) -> None:
    run_peer(PEER_PICKLES, tmp_path / "set")

    with pytest.raises(SourceError, match="`thing` is 'a pickle"):
        samples_of(tmp_path / "set")


def test_ragged_columns_share_no_memory_with_the_shard(data_set: Path) -> None:
    column = samples_of(data_set).frame(0)["zest"]

    assert isinstance(column, Ragged)
    assert column.nbytes < 40 * 30 + 41 * 8 + 1
