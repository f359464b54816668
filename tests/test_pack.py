import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace import manifest as manifests
from millrace.data.ingest import ingest
from millrace.data.pack import _sorted_classes, cut_units, pack
from millrace.data.samples import Samples
from millrace.data.splits import SPLITS, draw_splits, first_of_each
from millrace.errors import CorruptError, SourceError
from millrace.frozen import digest
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.spec import SplitSpec
from millrace.storage import FsspecStorage

BuildJob = Callable[..., Job]

ONE_FILE_A_UNIT = {"unit_bytes": 1}
CLASSES = {
    "source": {"url": "*"},
    "task": {"kind": "classification", "shape": [2]},
}


def put(job: Job, name: str, records: Iterable[Any]) -> None:
    lines = (json.dumps(r if isinstance(r, dict) else {"text": r}) for r in records)
    Path(job.folder, name).write_text("\n".join(lines))


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix} {number}" for number in range(count)]


def profile(job: Job) -> Job:
    """The job of packing what the source files hold now."""
    storage = FsspecStorage(job.store)
    made = manifests.publish(storage, ingest(job))
    manifests.point(storage, made)
    key = digest(made.digest, job.spec.model_dump())
    return job.model_copy(update={"inputs": {"source_files": made.path}, "key": key})


def publish(job: Job) -> Manifest:
    return manifests.publish(FsspecStorage(job.store), pack(profile(job)))


def packed_texts(job: Job, made: Manifest) -> dict[str, list[str]]:
    """The texts in each split's shards, in order, put together from their blocks."""
    texts: dict[str, list[str]] = {}
    for split in SPLITS:
        parts: dict[int, bytes] = {}
        for batch in Samples(FsspecStorage(job.store), made, split).batches(100):
            for tokens, length, record in zip(*batch.values(), strict=True):
                parts[int(record)] = parts.get(int(record), b"") + tokens[:length].tobytes()
        texts[split] = [part.decode() for part in parts.values()]
    return texts


def written(job: Job) -> dict[str, int]:
    """Path and time of writing of every shard on a local store."""
    return {str(path): path.stat().st_mtime_ns for path in Path(job.store).rglob("*.zst")}


def test_every_record_is_in_exactly_one_split(build_job: BuildJob, store_url: str) -> None:
    job = build_job(store_url, shards=ONE_FILE_A_UNIT)
    for letter in "abc":
        put(job, f"{letter}.jsonl", names(f"{letter}, longer than a block of 16 bytes", 40))

    made = publish(job)

    texts = packed_texts(job, made)
    together = [text for split in SPLITS for text in texts[split]]
    assert sorted(together) == sorted(
        text for c in "abc" for text in names(f"{c}, longer than a block of 16 bytes", 40)
    )
    assert {split: len(texts[split]) for split in SPLITS} == {
        split: counts["num_records"] for split, counts in made.facts["splits"].items()
    }
    assert made.facts["overlapping_records"] == 0


def test_packing_again_writes_nothing_and_reads_no_source(
    build_job: BuildJob, opened: list[str]
) -> None:
    job = build_job(shards=ONE_FILE_A_UNIT)
    for letter in "abc":
        put(job, f"{letter}.jsonl", names(letter, 40))
    first = publish(job)
    before = written(job)
    opened.clear()

    second = publish(job)

    assert (second.path, second.digest) == (first.path, first.digest)
    assert written(job) == before
    assert opened == []


@pytest.mark.parametrize("is_flipped", [False, True])
def test_a_shard_deleted_after_damage_is_made_anew(
    build_job: BuildJob, opened: list[str], is_flipped: bool
) -> None:
    job = build_job(shards=ONE_FILE_A_UNIT)
    storage = FsspecStorage(job.store)
    for letter in "abc":
        put(job, f"{letter}.jsonl", names(letter, 40))
    first = publish(job)
    damaged = first.files[0]
    whole = storage.read(damaged.path)
    if is_flipped:
        storage.write(damaged.path, whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CorruptError, match="Delete that object and materialize"):
            damaged.read(storage)
    storage.delete(damaged.path)
    opened.clear()

    assert manifests.find(storage, job.pipeline, "shards", first.key) is None
    second = publish(job)

    assert opened == ["a.jsonl"]
    assert storage.read(damaged.path) == whole
    assert (second.path, second.digest, second.files) == (first.path, first.digest, first.files)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ({"10", "9", "-1"}, ["-1", "9", "10"]),
        ({"1", "01", "001", "0"}, ["0", "001", "01", "1"]),
        ({"²", "1"}, ["1", "²"]),
        ({"--1", "1"}, ["--1", "1"]),
        ({"-", "1"}, ["-", "1"]),
    ],
)
def test_classes_are_sorted_alike_whatever_they_are_called(
    classes: set[str], expected: list[str]
) -> None:
    assert _sorted_classes(classes) == expected


def test_only_the_unit_of_a_changed_file_is_packed_again(
    build_job: BuildJob, opened: list[str]
) -> None:
    job = build_job(shards=ONE_FILE_A_UNIT)
    for letter in "abcd":
        put(job, f"{letter}.jsonl", names(letter, 40))
    first = publish(job)
    before = written(job)
    opened.clear()

    put(job, "b.jsonl", names("changed", 40))
    put(job, "e.jsonl", names("e", 40))
    second = publish(job)

    after = written(job)
    assert sorted(opened) == ["b.jsonl", "b.jsonl", "e.jsonl", "e.jsonl"]  # profiled, then packed
    assert {path: after[path] for path in before} == before
    kept = {file.sha256 for file in first.files} & {file.sha256 for file in second.files}
    assert len(kept) == 3 * len(SPLITS)
    assert len(after) - len(before) == 2 * len(SPLITS)


def test_a_record_keeps_its_split_when_others_come_and_go(build_job: BuildJob) -> None:
    job = build_job()
    put(job, "m.jsonl", names("kept", 100))
    before = packed_texts(job, publish(job))

    put(job, "a.jsonl", names("new", 100))
    put(job, "m.jsonl", names("kept", 50))
    put(job, "z.jsonl", names("kept", 100)[:49:-1])
    after = packed_texts(job, publish(job))

    for split in SPLITS:
        assert set(before[split]) == {text for text in after[split] if text.startswith("kept")}


def test_exact_duplicates_are_dropped_within_and_across_files(build_job: BuildJob) -> None:
    job = build_job(shards=ONE_FILE_A_UNIT)
    put(job, "a.jsonl", names("x", 60) + names("x", 30))
    put(job, "b.jsonl", names("x", 60) + names("y", 5))

    made = publish(job)

    texts = [text for split in packed_texts(job, made).values() for text in split]
    assert sorted(texts) == sorted(names("x", 60) + names("y", 5))
    assert made.facts["num_duplicates"] == 90


def test_equal_inputs_with_other_labels_stay_in_one_split(build_job: BuildJob) -> None:
    job = build_job(**CLASSES)
    put(job, "a.jsonl", [{"a": i, "b": 1, "label": label} for i in range(60) for label in "xy"])

    made = publish(job)

    assert made.facts["overlapping_records"] == 0
    assert made.facts["num_duplicates"] == 0
    assert sum(counts["num_records"] for counts in made.facts["splits"].values()) == 120


def test_classes_are_numbered_alike_over_all_units(build_job: BuildJob) -> None:
    job = build_job(**CLASSES, shards=ONE_FILE_A_UNIT)
    for name, labels in (("a", [10, 9]), ("b", [2, 10]), ("c", [9, 2])):
        put(
            job,
            f"{name}.jsonl",
            [{"a": i, "b": ord(name), "label": labels[i % 2]} for i in range(60)],
        )
    made = publish(job)

    expected = {
        (float(i), float(ord(name))): labels[i % 2]
        for name, labels in (("a", [10, 9]), ("b", [2, 10]), ("c", [9, 2]))
        for i in range(60)
    }
    found = {
        (float(a), float(b)): int(made.facts["classes"][label])
        for split in SPLITS
        for batch in Samples(FsspecStorage(job.store), made, split).batches(50)
        for (a, b), label in zip(batch["inputs"], batch["label"], strict=True)
    }
    assert made.facts["classes"] == ["2", "9", "10"]
    assert found == expected


def test_mean_and_deviation_are_of_the_train_split_alone(build_job: BuildJob) -> None:
    job = build_job(**CLASSES, shards=ONE_FILE_A_UNIT)
    for number in range(3):
        records = [{"a": i, "b": 100 * number, "label": "xy"[i % 2]} for i in range(50)]
        put(job, f"{number}.jsonl", records)

    made = publish(job)

    train = Samples(FsspecStorage(job.store), made, "train")
    numbers = np.concatenate([batch["inputs"] for batch in train.batches(50)])
    assert made.facts["mean"] == pytest.approx(numbers.mean(0))
    assert made.facts["deviation"] == pytest.approx(numbers.std(0))


def test_a_single_class_is_refused(build_job: BuildJob) -> None:
    job = build_job(**CLASSES)
    put(job, "a.jsonl", [{"a": i, "b": 1, "label": "only"} for i in range(60)])

    with pytest.raises(SourceError, match=r"classes in field `label`: there is only \['only'\]"):
        publish(job)


@pytest.mark.parametrize(
    "change", [names("other", 40), names("x", 39), names("x", 41), ["y", *names("x", 40)]]
)
def test_a_file_changed_after_it_was_listed_is_refused(
    build_job: BuildJob, change: list[str]
) -> None:
    job = build_job()
    put(job, "a.jsonl", names("x", 40))
    profiled = profile(job)

    put(job, "a.jsonl", change)

    with pytest.raises(SourceError, match=r"pack a\.jsonl: its records differ"):
        pack(profiled)
    assert written(job) == {}


def test_a_file_removed_after_it_was_listed_is_refused(build_job: BuildJob) -> None:
    job = build_job()
    put(job, "a.jsonl", names("x", 40))
    profiled = profile(job)

    Path(job.folder, "a.jsonl").unlink()

    with pytest.raises(SourceError, match=r"a\.jsonl .*it is gone"):
        pack(profiled)


def test_a_source_that_was_moved_is_packed_from_where_it_is(
    build_job: BuildJob, tmp_path: Path
) -> None:
    job = build_job()
    put(job, "a.jsonl", names("x", 40))
    profiled = profile(job)

    shutil.move(job.folder, tmp_path / "moved")
    made = pack(profiled.model_copy(update={"folder": str(tmp_path / "moved")}))

    assert sum(len(texts) for texts in packed_texts(job, made).values()) == 40


@pytest.mark.parametrize("count", [1, 2])
def test_an_empty_split_is_refused_with_the_counts(build_job: BuildJob, count: int) -> None:
    job = build_job()
    put(job, "a.jsonl", names("x", count))

    with pytest.raises(
        SourceError, match=rf"split {count} distinct records .* split is empty \({{"
    ):
        publish(job)


def test_large_samples_are_spread_over_shards_and_frames(build_job: BuildJob) -> None:
    job = build_job(shards={"frame_bytes": 280, "shard_bytes": 560})
    put(job, "a.jsonl", names("x", 200))

    made = publish(job)

    train = [shard for shard in made.facts["shards"] if shard["split"] == "train"]
    assert len(train) > 5
    assert all(len(shard["frames"]["num_samples"]) <= 2 for shard in train)
    assert {n for shard in train[:-1] for n in shard["frames"]["num_samples"]} == {10}
    assert sum(len(texts) for texts in packed_texts(job, made).values()) == 200


def test_every_store_gets_the_same_shards(
    build_job: BuildJob, store_url: str, tmp_path: Path
) -> None:
    digests = set()
    for url in (store_url, str(tmp_path / "reference")):
        job = build_job(url)
        put(job, "a.jsonl", names("x", 40))
        digests.add(publish(job).digest)

    assert len(digests) == 1


sizes = st.lists(st.integers(0, 1000), min_size=1, max_size=60)


def entries(file_bytes: list[int]) -> list[dict[str, Any]]:
    return [{"path": f"{i}", "num_bytes": size} for i, size in enumerate(file_bytes)]


@given(sizes, st.integers(1, 5000))
def test_units_hold_every_file_once_in_order(file_bytes: list[int], unit_bytes: int) -> None:
    units = cut_units(entries(file_bytes), unit_bytes)

    assert [i for unit in units for i in unit] == list(range(len(file_bytes)))
    assert all(units)


@given(st.integers(0, 199))
def test_a_new_file_changes_one_unit(place: int) -> None:
    files = entries([100] * 200)
    before = [[files[i]["path"] for i in unit] for unit in cut_units(files, 1600)]

    files.insert(place, {"path": "new", "num_bytes": 100})
    after = [[files[i]["path"] for i in unit] for unit in cut_units(files, 1600)]

    changed = [unit for unit in before if unit not in after]
    assert len(changed) <= 1
    assert len(before) > 4


def test_splits_have_their_shares() -> None:
    ids = np.random.default_rng(0).integers(0, 2**64, 200_000, np.uint64)

    counts = np.bincount(draw_splits(ids, SplitSpec(validation=0.2, test=0.1))) / len(ids)

    np.testing.assert_allclose(counts, [0.7, 0.2, 0.1], atol=0.004)


def test_neighbouring_ids_are_split_as_evenly_as_any() -> None:
    counts = np.bincount(draw_splits(np.arange(200_000, dtype=np.uint64), SplitSpec())) / 200_000

    np.testing.assert_allclose(counts, [0.8, 0.1, 0.1], atol=0.004)


def test_another_seed_draws_other_splits() -> None:
    ids = np.arange(1000, dtype=np.uint64)

    draws = [draw_splits(ids, SplitSpec(seed=seed)).tobytes() for seed in (0, 0, 1, 2**40)]

    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


def test_splits_stay_what_they_were() -> None:
    # A record must never move from test to train, whatever version of ours draws.
    drawn = draw_splits(np.arange(12, dtype=np.uint64), SplitSpec(validation=0.3, test=0.3))

    assert drawn.tolist() == [0, 1, 1, 2, 1, 1, 0, 1, 0, 0, 2, 1]


@given(st.lists(st.integers(0, 5), max_size=30))
def test_the_first_of_each_content_is_kept(ids: list[int]) -> None:
    kept = first_of_each(np.array(ids, np.uint64))

    assert kept.tolist() == [number not in ids[:i] for i, number in enumerate(ids)]
