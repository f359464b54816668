from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.data.columns import Columns, Field
from millrace.data.shard import ShardWriter
from millrace.data.stream import Samples, Stream
from millrace.errors import CorruptError, SpecError
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage

FIELDS = {"inputs": Field("float32", (2,)), "label": Field("int32"), "record": Field("uint64")}
NUM_SAMPLES = 101


def publish(storage: FsspecStorage) -> Manifest:
    """Two shards of the train split, whose label columns number the classes differently."""
    shards = []
    for start, stop, classes in ((0, 60, ("b", "a")), (60, NUM_SAMPLES, ("a", "c", "b"))):
        record = np.arange(start, stop, dtype=np.uint64)
        columns: Columns = {
            "inputs": np.stack([record, record + 0.5], axis=1).astype(np.float32),
            "label": (record % len(classes)).astype(np.int32),
            "record": record,
        }
        writer = ShardWriter(FIELDS, "train", level=1, frame_bytes=200)
        shards.append(writer.write(storage, "p/shards", columns, classes))
    return Manifest(
        "p",
        "shards",
        "0" * 64,
        files=tuple(shard.file for shard in shards),
        facts={
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


def test_labels_are_numbers_into_the_classes_of_all_shards(samples: Samples) -> None:
    found = np.concatenate(
        [samples.frame(i)["label"] for i in range(len(samples.samples_per_frame))]
    )

    names = ["ba"[i % 2] for i in range(60)] + ["acb"[i % 3] for i in range(60, NUM_SAMPLES)]
    assert ["abc"[number] for number in found] == names


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batches_give_all_samples_in_stored_order(samples: Samples, size: int) -> None:
    found = list(samples.batches(size))

    assert np.concatenate([part["record"] for part in found]).tolist() == list(range(NUM_SAMPLES))
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
    batch = next(stream)
    stream.close()

    np.testing.assert_array_equal(batch["inputs"][:, 0], batch["record"].astype(np.float32))
    np.testing.assert_array_equal(batch["inputs"][:, 1], batch["record"] + np.float32(0.5))


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
    alone = Stream(samples, 12, seed=3)
    ranks = [Stream(samples, 12, seed=3, rank=r, world_size=world_size) for r in range(world_size)]

    together = [record for rank in ranks for record in rank.batch_at(step)["record"].tolist()]

    assert together == alone.batch_at(step)["record"].tolist()
    for stream in (alone, *ranks):
        stream.close()


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


def test_seek_goes_back_too(samples: Samples) -> None:
    stream = Stream(samples, 12, seed=3)
    first = take(stream, 5)

    stream.seek(0)

    assert take(stream, 5) == first
    stream.close()


def test_the_batch_of_a_step_does_not_depend_on_what_was_asked_before(samples: Samples) -> None:
    expected = unbroken(samples, 20)
    stream = Stream(samples, 12, seed=3)

    found = {step: stream.batch_at(step)["record"].tolist() for step in (17, 3, 3, 0, 19, 8)}

    stream.close()
    assert all(expected[step] == records for step, records in found.items())


def test_a_batch_may_be_changed_without_changing_the_stream(samples: Samples) -> None:
    stream = Stream(samples, 12, seed=3)
    before = stream.batch_at(0)["inputs"].copy()

    stream.batch_at(0)["inputs"][:] = -1

    np.testing.assert_array_equal(stream.batch_at(0)["inputs"], before)
    stream.close()


def test_another_seed_draws_another_order(samples: Samples) -> None:
    assert unbroken(samples, 3, seed=3) != unbroken(samples, 3, seed=4)


def test_a_cache_smaller_than_the_split_changes_nothing(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = unbroken(samples, 20)

    monkeypatch.setattr("millrace.data.stream.CACHE_BYTES", 0)
    monkeypatch.setattr("millrace.data.stream.GROUP_FRAMES", 0)

    assert unbroken(samples, 20) == expected


def test_every_store_gives_the_same_batches(storage: FsspecStorage, tmp_path: Path) -> None:
    local = FsspecStorage(str(tmp_path / "reference"))
    made = publish(storage)

    assert made.digest == publish(local).digest
    assert unbroken(Samples(storage, made, "train"), 20) == unbroken(
        Samples(local, publish(local), "train"), 20
    )


def test_a_damaged_frame_stops_the_stream_each_time_it_is_asked(tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path))
    made = publish(storage)
    for file in made.files:
        data = bytearray(storage.read(file.path))
        data[len(data) // 2] ^= 1
        storage.write(file.path, bytes(data))
    stream = Stream(Samples(storage, made, "train"), 96, seed=3)

    for _ in range(3):
        with pytest.raises(CorruptError, match=r"read frame \d+ of p/shards/train-"):
            next(stream)
    stream.close()
