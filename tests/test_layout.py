import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace import manifest as manifests
from millrace.cost import StoragePrice
from millrace.data.columns import num_rows, size
from millrace.data.frontier import FRAME_BYTES
from millrace.data.ingest import ingest
from millrace.data.layout import (
    FILES_PER_RUN,
    NOUN,
    build_frames,
    choose_layout,
    layout_key,
    power_of_four,
    read_sample,
    spread,
    thin,
)
from millrace.data.pack import pack
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage

BuildJob = Callable[..., Job]

# So dear that even a small data set pays for a higher level.
DEAR = StoragePrice(usd_per_gib_month=1e6, months_kept=6)
BLOCKS = {"task": {"kind": "language_model", "block_bytes": 1024}}


def put(job: Job, name: str, texts: Iterable[str]) -> None:
    Path(job.folder, name).write_text("\n".join(json.dumps({"text": text}) for text in texts))


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts that compress the better the harder one tries, as prose does."""
    rng = np.random.default_rng(seed)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(2, 9, 400)]
    return [" ".join(words[min(399, int(w))] for w in rng.zipf(1.3, 150)) for _ in range(count)]


def profile(job: Job) -> Manifest:
    made = manifests.publish(FsspecStorage(job.store), ingest(job))
    manifests.point(FsspecStorage(job.store), made)
    return made


def pack_now(job: Job) -> Manifest:
    """Shards of what the source files hold now."""
    source = profile(job)
    return pack(job.model_copy(update={"inputs": {"source_files": source.path}, "key": "k"}))


def layouts(job: Job) -> dict[str, int]:
    return FsspecStorage(job.store).list(f"{job.pipeline}/{NOUN}")


def dear(job: Job) -> Job:
    return job.model_copy(update={"storage_price": DEAR, "usd_per_hour": 0.04})


def test_small_data_get_the_default_and_are_told_why(build_job: BuildJob, store_url: str) -> None:
    job = build_job(store_url)
    put(job, "a.jsonl", sentences(60))

    made = pack_now(job)

    assert made.facts["layout"] == {"level": 3, "frame_bytes": 2**20}
    told = made.measured["layout"]
    assert told["reason"].startswith("level 3, 1 MiB, the default: ")
    assert {point["level"] for point in told["points"]} >= {1, 3}
    assert told["link"]["read_bytes_per_second"] > 0


def test_dear_storage_packs_harder_and_the_shards_are_smaller(build_job: BuildJob) -> None:
    usual = build_job("memory://layout-usual", **BLOCKS)
    put(usual, "a.jsonl", sentences(300))
    packed_hard = dear(build_job("memory://layout-dear", **BLOCKS))

    by_default, by_cost = pack_now(usual), pack_now(packed_hard)

    assert by_cost.facts["layout"]["level"] > 3
    assert by_cost.num_bytes < by_default.num_bytes
    assert "against" in by_cost.measured["layout"]["reason"]
    assert by_cost.facts["frames_read_back"] == by_cost.facts["num_frames"]


def test_what_is_estimated_from_the_sample_is_what_is_packed(build_job: BuildJob) -> None:
    job = dear(build_job(**BLOCKS))
    put(job, "a.jsonl", sentences(400))

    made = pack_now(job)

    told = made.measured["layout"]
    raw_bytes = sum(split["raw_bytes"] for split in made.facts["splits"].values())
    stored = sum(split["num_bytes"] for split in made.facts["splits"].values())
    chosen = next(
        point
        for point in told["points"]
        if {name: point[name] for name in ("level", "frame_bytes")} == made.facts["layout"]
    )
    assert told["raw_bytes"] == pytest.approx(raw_bytes, rel=0.05)
    assert told["raw_bytes"] / chosen["ratio"] == pytest.approx(stored, rel=0.2)


def test_what_was_chosen_is_kept_and_not_measured_again(
    build_job: BuildJob, opened: list[str]
) -> None:
    job = dear(build_job(**BLOCKS))
    put(job, "a.jsonl", sentences(200))
    first = pack_now(job)
    (path,) = layouts(job)
    made = manifests.read(FsspecStorage(job.store), path)
    put(job, "b.jsonl", sentences(20, seed=1))
    opened.clear()

    second = pack_now(job)

    assert layouts(job) == {path: layouts(job)[path]}
    assert manifests.read(FsspecStorage(job.store), path) == made
    assert second.facts["layout"] == first.facts["layout"]
    assert second.measured["layout"] == first.measured["layout"]
    assert opened.count("a.jsonl") <= 1  # packed with its unit, not sampled


def test_another_machine_packs_as_the_first_one_chose(build_job: BuildJob) -> None:
    job = dear(build_job(**BLOCKS))
    put(job, "a.jsonl", sentences(200))
    first = pack_now(job)

    second = pack_now(job.model_copy(update={"usd_per_hour": 1e9}))

    assert second.digest == first.digest


def test_other_prices_of_storage_are_chosen_for_anew(build_job: BuildJob) -> None:
    job = build_job(**BLOCKS)
    put(job, "a.jsonl", sentences(200))
    first = pack_now(job)

    second = pack_now(dear(job))

    assert second.facts["layout"]["level"] > first.facts["layout"]["level"]
    assert len(layouts(job)) == 2


def test_the_choice_is_kept_until_data_or_reads_grow_fourfold(build_job: BuildJob) -> None:
    job = build_job()

    def key(num_bytes: int, steps: int = 5) -> str:
        train = {"steps": steps, "batch": 4}
        facts = {"recipe": "r", "num_bytes": num_bytes}
        changed = build_job(train=train)
        return layout_key(changed, Manifest("p", "source_files", "k", facts=facts))

    assert key(4**10) == key(4**11 - 1)
    assert key(4**10) != key(4**11)
    assert key(4**10, steps=5) == key(4**10, steps=6)
    assert key(4**10, steps=5) != key(4**10, steps=50_000)
    assert job.spec.shards.level == "auto"


@given(st.floats(1, 1e18))
def test_a_power_of_four_is_the_largest_below(amount: float) -> None:
    exponent = power_of_four(amount)

    assert 4**exponent <= amount * (1 + 1e-9)
    assert amount < 4 ** (exponent + 1) * (1 + 1e-9)


@pytest.mark.parametrize("shards", [{"level": 7}, {"level": 7, "frame_bytes": 2048}])
def test_the_spec_overrules_what_is_cheapest(build_job: BuildJob, shards: dict[str, int]) -> None:
    job = dear(build_job(shards=shards, **BLOCKS))
    put(job, "a.jsonl", sentences(100))

    made = pack_now(job)

    assert made.facts["layout"].items() >= shards.items()
    assert {point["level"] for point in made.measured["layout"].get("points", ())} <= {7}


def test_where_the_spec_says_both_nothing_is_measured(build_job: BuildJob) -> None:
    job = dear(build_job(shards={"level": 7, "frame_bytes": 2048}, **BLOCKS))
    put(job, "a.jsonl", sentences(100))

    made = pack_now(job)

    assert layouts(job) == {}
    assert made.measured["layout"] == {"reason": "level 7, 2 KiB: as the spec says"}


def test_the_default_said_in_the_spec_gives_the_same_shards(build_job: BuildJob) -> None:
    said = {"level": 3, "frame_bytes": 2**20}
    job = build_job()
    put(job, "a.jsonl", sentences(60))

    assert pack_now(job).files == pack_now(build_job(shards=said)).files


def test_a_frame_size_alone_leaves_the_level_to_be_chosen(build_job: BuildJob) -> None:
    job = dear(build_job(shards={"frame_bytes": 4096}, **BLOCKS))
    put(job, "a.jsonl", sentences(200))

    made = pack_now(job)

    assert made.facts["layout"]["frame_bytes"] == 4096
    assert made.facts["layout"]["level"] > 3


def test_files_without_a_usable_record_leave_the_default(build_job: BuildJob) -> None:
    job = build_job(source={"url": "*", "max_rejected": 0.9}, **BLOCKS)
    put(job, "a.jsonl", sentences(3))
    source = profile(job)
    put(job, "a.jsonl", [])  # emptied in between

    layout = choose_layout(FsspecStorage(job.store), job, source, num_records=3, num_train=2)

    assert layout.facts == {"level": 3, "frame_bytes": 2**20}
    assert layouts(job) == {}


def test_a_sample_is_the_same_every_time_and_no_larger_than_asked(build_job: BuildJob) -> None:
    job = build_job(**BLOCKS)
    for number in range(20):
        put(job, f"{number:02}.jsonl", sentences(20, seed=number))
    source = profile(job)

    sample, again = (read_sample(job, source, 2**17) for _ in range(2))

    assert sample is not None
    assert again is not None
    assert 2**16 < size(sample.columns) <= 2**17
    assert all(np.array_equal(sample.columns[name], again.columns[name]) for name in again.columns)
    assert len(set(sample.columns["record"].tolist())) > 8  # of several files


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=80), st.integers(1, 50_000))
def test_files_are_sampled_once_each_and_from_the_first_on(
    file_bytes: list[int], most_bytes: int
) -> None:
    chosen = spread(file_bytes, most_bytes)

    assert chosen == sorted(set(chosen))
    assert chosen
    assert all(0 <= number < len(file_bytes) for number in chosen)


def test_runs_of_files_start_evenly_spread_over_the_bytes() -> None:
    chosen = spread([100] * 800, 8 * 200)

    assert chosen == [start + i for start in range(0, 800, 100) for i in range(2)]
    assert len(spread([0] * 10_000, 1000)) <= FILES_PER_RUN


@given(st.integers(1, 3000), st.integers(0, 5000))
def test_thinned_values_are_some_of_them_in_order(total: int, count: int) -> None:
    found = list(thin(range(total), count))

    assert found == sorted(set(found))
    assert min(total, count) / 2 <= len(found) <= max(1, count)


def test_short_texts_in_long_blocks_make_no_large_sample(build_job: BuildJob) -> None:
    job = build_job(task={"kind": "language_model", "block_bytes": 2**16})
    put(job, "a.jsonl", [f"text {number}" for number in range(2000)])

    sample = read_sample(job, profile(job), 2**20)

    assert sample is not None
    assert 2**19 <= size(sample.columns) <= 2**20
    assert sample.samples_per_record == 1


def test_frame_sizes_that_make_no_difference_or_hold_no_sample_are_left_out(
    build_job: BuildJob,
) -> None:
    job = build_job(task={"kind": "language_model", "block_bytes": 300_000})
    columns: dict[str, Any] = {
        "tokens": np.zeros((10, 300_000), np.uint8),
        "length": np.zeros(10, np.uint32),
        "record": np.zeros(10, np.uint64),
    }

    frames = build_frames(job, columns, FRAME_BYTES, 2**20)

    assert set(frames) == {2**20, 2**22}  # 256 KiB hold no sample
    assert [len(frames[size]) for size in (2**20, 2**22)] == [4, 1]
    few = {name: column[:2] for name, column in columns.items()}
    assert num_rows(few) == 2
    assert set(build_frames(job, few, FRAME_BYTES, 2**20)) == {2**20}  # all fit into 1 MiB
