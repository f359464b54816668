import io
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from millrace.data import order
from millrace.data.columns import Columns, Field, Ragged, equal, join
from millrace.data.samples import Samples
from millrace.data.shard import Layout, ShardWriter
from millrace.data.stream import Stream
from millrace.errors import CorruptError, SpecError, VersionError
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage

FIELDS = {
    "inputs": Field("float32", (2,)),
    "label": Field("int32"),
    "record": Field("uint64"),
    "text": Field("text"),
}
NUM_SAMPLES = 101


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many chunks, windows and groups in a hundred samples as else in a hundred thousand."""
    monkeypatch.setattr(order, "CHUNK_BYTES", 900)
    monkeypatch.setattr(order, "LANE_CHUNKS", 1)
    monkeypatch.setattr(order, "MIX_BYTES", 8000)


def publish(storage: FsspecStorage, first: int = 0, frame_bytes: int = 300) -> Manifest:
    """Two shards of the train split, whose label columns number the classes differently."""
    shards = []
    for start, stop, classes in ((0, 60, ("b", "a")), (60, NUM_SAMPLES, ("a", "c", "b"))):
        record = np.arange(first + start, first + stop, dtype=np.uint64)
        columns: Columns = {
            "inputs": np.stack([record, record + 0.5], axis=1).astype(np.float32),
            "label": (record % len(classes)).astype(np.int32),
            "record": record,
            "text": Ragged.of([b"t%d" % number * (int(number) % 4) for number in record]),
        }
        layout = Layout(1, frame_bytes, 2**20)
        writer = ShardWriter(storage, "p/shards", FIELDS, split="train", layout=layout)
        writer.write(columns)
        shards += writer.close(classes)
    return Manifest(
        "p",
        "shards",
        "0" * 64,
        files=tuple(shard.file for shard in shards),
        facts={
            "format": 1,
            "fields": {name: [field.dtype, list(field.shape)] for name, field in FIELDS.items()},
            "classes": ["a", "b", "c"],
            "shards": [shard.to_dict() for shard in shards],
        },
    )


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    storage = FsspecStorage(str(tmp_path / "store"))
    return Samples(storage, publish(storage), "train")


def take(stream: Iterator[Columns], num_steps: int) -> list[list[int]]:
    return [next(stream)["record"].tolist() for _ in range(num_steps)]


def unbroken(samples: Samples, num_steps: int, batch: int = 12, seed: int = 3) -> list[list[int]]:
    stream = Stream(samples, batch, seed=seed)
    steps = take(stream, num_steps)
    stream.close()
    return steps


def served(samples: Samples, step: int, rank: int, world_size: int) -> list[int]:
    """The records of a rank's share of one step of batches of 12."""
    stream = Stream(samples, 12, seed=3, rank=rank, world_size=world_size)
    stream.seek(step)
    (found,) = take(stream, 1)
    stream.close()
    return found


def test_labels_are_numbers_into_the_classes_of_all_shards(samples: Samples) -> None:
    found = np.concatenate(
        [samples.frame(i)["label"] for i in range(len(samples.samples_per_frame))]
    )

    names = ["ba"[i % 2] for i in range(60)] + ["acb"[i % 3] for i in range(60, NUM_SAMPLES)]
    assert ["abc"[number] for number in found] == names


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batches_give_all_samples_in_stored_order(samples: Samples, size: int) -> None:
    found = list(samples.batches(size))

    assert join(found)["record"].tolist() == list(range(NUM_SAMPLES))
    assert all(len(part["record"]) <= size for part in found)


def test_a_split_that_holds_nothing_is_refused_when_streamed(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    empty = Samples(storage, publish(storage), "test")

    assert len(empty) == 0
    assert list(empty.batches(10)) == []
    with pytest.raises(SpecError, match="the split has only 0"):
        Stream(empty, 1, seed=0)


def test_a_batch_larger_than_the_split_is_refused(samples: Samples) -> None:
    with pytest.raises(SpecError, match=r"stream batches of 102 samples: the split has only 101"):
        Stream(samples, 102, seed=0)


def test_a_batch_holds_whole_samples(samples: Samples) -> None:
    stream = Stream(samples, 12, seed=3)
    batches = [next(stream) for _ in range(9)]
    stream.close()

    for batch in batches:
        record = batch["record"]
        np.testing.assert_array_equal(batch["inputs"][:, 0], record.astype(np.float32))
        np.testing.assert_array_equal(batch["inputs"][:, 1], record + np.float32(0.5))
        assert batch["text"].tolist() == [b"t%d" % n * (int(n) % 4) for n in record]
        assert batch["label"].dtype == np.int64


def test_an_epoch_visits_each_sample_at_most_once_and_leaves_less_than_a_batch(
    samples: Samples,
) -> None:
    steps = unbroken(samples, 16)

    for epoch in (steps[:8], steps[8:]):
        visited = [record for step in epoch for record in step]
        assert len(set(visited)) == len(visited) == 96
    assert steps[:8] != steps[8:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(world_size=st.sampled_from([1, 2, 3, 4, 6, 12]), step=st.integers(0, 40))
def test_a_step_holds_the_same_samples_on_any_world_size(
    samples: Samples, world_size: int, step: int
) -> None:
    together = [
        record for rank in range(world_size) for record in served(samples, step, rank, world_size)
    ]

    assert together == served(samples, step, 0, 1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_stream_resumed_at_any_step_equals_an_unbroken_one(
    samples: Samples, world_size: int
) -> None:
    expected = unbroken(samples, 20)
    rank, share = world_size - 1, 12 // world_size

    for step in range(17):
        resumed = Stream(samples, 12, seed=3, rank=rank, world_size=world_size)
        resumed.seek(step)
        found = take(resumed, 3)
        resumed.close()
        assert found == [whole[rank * share :] for whole in expected[step : step + 3]]


def test_a_stream_resumed_again_and_again_on_other_world_sizes_loses_nothing(
    samples: Samples,
) -> None:
    expected, found = unbroken(samples, 20), []

    for start, stop, world_size in ((0, 3, 2), (3, 4, 1), (4, 11, 4), (11, 12, 3), (12, 20, 6)):
        ranks = [
            Stream(samples, 12, seed=3, rank=r, world_size=world_size) for r in range(world_size)
        ]
        for rank in ranks:
            rank.seek(start)
        shares = [take(rank, stop - start) for rank in ranks]
        found += [list(chain(*parts)) for parts in zip(*shares, strict=True)]
        for rank in ranks:
            rank.close()

    assert found == expected


def test_seek_goes_back_too(samples: Samples) -> None:
    stream = Stream(samples, 12, seed=3)
    first = take(stream, 5)

    stream.seek(0)

    assert take(stream, 5) == first
    stream.close()


@pytest.mark.parametrize("stride", [2, 3, 7])
def test_every_nth_step_is_what_it_is_in_the_whole(samples: Samples, stride: int) -> None:
    expected = unbroken(samples, 30)
    stream = Stream(samples, 12, seed=3)

    stream.seek(1, stride)
    found = take(stream, 4)

    stream.close()
    assert found == expected[1 : 1 + 4 * stride : stride]


def test_a_batch_may_be_changed_without_changing_the_stream(samples: Samples) -> None:
    stream = Stream(samples, 12, seed=3)
    first = [next(stream)["inputs"] for _ in range(3)]
    before = [part.copy() for part in first]
    for part in first:
        part[:] = -1

    stream.seek(0)

    for part in before:
        np.testing.assert_array_equal(next(stream)["inputs"], part)
    stream.close()


def test_another_seed_draws_another_order(samples: Samples) -> None:
    assert unbroken(samples, 3, seed=3) != unbroken(samples, 3, seed=4)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(samples: Samples, threads: int) -> None:
    stream = Stream(samples, 12, seed=3, threads=threads)
    found = take(stream, 20)
    stream.close()

    assert found == unbroken(samples, 20)


def test_every_store_gives_the_same_batches(storage: FsspecStorage, tmp_path: Path) -> None:
    local = FsspecStorage(str(tmp_path / "reference"))
    made = publish(storage)

    assert made.digest == publish(local).digest
    assert unbroken(Samples(storage, made, "train"), 20) == unbroken(
        Samples(local, publish(local), "train"), 20
    )


def test_samples_near_each_other_in_the_store_are_far_from_each_other_in_the_stream(
    tmp_path: Path,
) -> None:
    storage = FsspecStorage(str(tmp_path))
    samples = Samples(storage, publish(storage, frame_bytes=80), "train")

    first = unbroken(samples, 16, batch=8)

    spreads = [max(batch) - min(batch) for batch in first[4:]]
    assert min(spreads) > NUM_SAMPLES // 4


def test_two_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    few, many = (Samples(storage, publish(storage, first), "train") for first in (0, 1000))

    stream = Stream([(few, 1.0), (many, 3.0)], 12, seed=3)
    steps = take(stream, 200)
    stream.close()

    drawn = [record >= 1000 for step in steps for record in step]
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.01)
    assert {len(step) for step in steps} == {12}
    from_few = [record for step in steps for record in step if record < 1000]
    visits = Counter(from_few)  # six epochs, in each of which a sample may be left out
    assert len(visits) == NUM_SAMPLES
    assert max(visits.values()) <= 7
    assert min(visits.values()) >= 3


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("step", [0, 1, 17, 90])
def test_a_mixture_holds_the_same_samples_on_any_world_size(
    tmp_path: Path, step: int, world_size: int
) -> None:
    storage = FsspecStorage(str(tmp_path))
    sources = [
        (Samples(storage, publish(storage, first), "train"), weight)
        for first, weight in ((0, 0.1), (1000, 0.7), (5000, 0.2))
    ]
    found = []
    for rank, size in [(0, 1), *((rank, world_size) for rank in range(world_size))]:
        stream = Stream(sources, 12, seed=3, rank=rank, world_size=size)
        stream.seek(step)
        found.append(take(stream, 1)[0])
        stream.close()

    assert list(chain(*found[1:])) == found[0]


def test_a_mixture_of_other_classes_is_refused(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    made = publish(storage)
    other = replace(made, facts=dict(made.facts) | {"classes": ["c", "b", "a"]})
    sources = [(Samples(storage, one, "train"), 1.0) for one in (made, other)]

    with pytest.raises(SpecError, match="their labels mean different classes: c, b, a and a, b, c"):
        Stream(sources, 12, seed=3)


def test_a_closed_stream_says_so(samples: Samples) -> None:
    stream = Stream(samples, 12, seed=3)
    stream.close()

    with pytest.raises(RuntimeError, match="the stream was closed"):
        next(stream)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_mixture_refuses_a_weight_that_is_none(samples: Samples, weight: float) -> None:
    with pytest.raises(SpecError, match=r"a weight is .*Set it above 0"):
        Stream([(samples, 1.0), (samples, weight)], 12, seed=3)


def test_coded_images_are_decoded_batch_by_batch(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 255, (40, 1, 4, 4), np.uint8)
    coded = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image[0]).save(buffer, "PNG")
        coded.append(buffer.getvalue())
    fields = {"image": Field("image", (1, 4, 4)), "record": Field("uint64")}
    writer = ShardWriter(storage, "p/shards", fields, split="train", layout=Layout(1, 900, 2**20))
    writer.write({"image": Ragged.of(coded), "record": np.arange(40, dtype=np.uint64)})
    made = publish(storage)
    facts = dict(made.facts) | {
        "fields": {name: [field.dtype, list(field.shape)] for name, field in fields.items()},
        "shards": [shard.to_dict() for shard in writer.close()],
    }

    stream = Stream(Samples(storage, replace(made, facts=facts), "train"), 8, seed=0)
    batches = [next(stream) for _ in range(5)]
    stream.close()

    found = join(batches)
    np.testing.assert_array_equal(found["image"], pixels[found["record"].astype(int)])


def damage(storage: FsspecStorage, made: Manifest) -> None:
    for file in made.files:
        data = bytearray(storage.read(file.path))
        data[len(data) // 2] ^= 1
        storage.write(file.path, bytes(data))


def test_a_damaged_frame_stops_the_stream_each_time_it_is_asked(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    made = publish(storage)
    damage(storage, made)
    stream = Stream(Samples(storage, made, "train"), 96, seed=3)

    for _ in range(3):
        with pytest.raises(CorruptError, match=r"frame \d+ of p/shards/train-.* at byte \d+"):
            next(stream)
    stream.close()


def test_a_stream_goes_on_after_an_error_is_mended(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    made = publish(storage)
    whole = {file.path: storage.read(file.path) for file in made.files}
    samples = Samples(storage, made, "train")
    expected = unbroken(samples, 6)
    damage(storage, made)
    stream = Stream(samples, 12, seed=3)
    with pytest.raises(CorruptError):
        take(stream, 8)

    for path, data in whole.items():
        storage.write(path, data)
    stream.seek(2)

    assert take(stream, 4) == expected[2:]
    stream.close()


def test_a_stream_is_usable_again_after_ctrl_c(samples: Samples) -> None:
    expected = unbroken(samples, 6)
    started, let_go = threading.Event(), threading.Event()
    read = samples.frame

    def slow(number: int) -> Columns:
        started.set()
        let_go.wait()
        return read(number)

    samples.frame = slow  # type: ignore[method-assign]  # a store that stalls until it is let go
    stream = Stream(samples, 12, seed=3)
    started.wait()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    let_go.set()

    assert take(stream, 6) == expected
    stream.close()


def test_shards_of_a_newer_format_are_refused_with_their_version(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    made = publish(storage)
    newer = replace(made, facts=dict(made.facts) | {"format": 2})

    with pytest.raises(VersionError, match="shard format version 2; this is Millrace for version"):
        Samples(storage, newer, "train")


@pytest.mark.parametrize("path", ["q/shards/x.zst", "p/../q/x.zst", "/etc/passwd", "../x.zst"])
def test_a_shard_outside_of_its_pipeline_is_refused(tmp_path: Path, path: str) -> None:
    storage = FsspecStorage(str(tmp_path))
    made = publish(storage)
    shards = [shard | {"file": shard["file"] | {"path": path}} for shard in made.facts["shards"]]

    with pytest.raises(CorruptError, match="which is not below p/"):
        Samples(storage, replace(made, facts=dict(made.facts) | {"shards": shards}), "train")


def test_two_frames_are_equal_to_what_was_packed(samples: Samples) -> None:
    found = join(samples.frame(number) for number in range(len(samples.samples_per_frame)))

    assert equal(found["record"], np.arange(NUM_SAMPLES, dtype=np.uint64))
