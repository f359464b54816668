import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from millrace import manifest as manifests
from millrace.data import unit
from millrace.data.columns import Field
from millrace.data.pack import pack
from millrace.data.samples import Samples
from millrace.data.shard import Shard, ShardReader
from millrace.data.splits import SPLITS, draw_splits
from millrace.data.workers import WORTH_BYTES
from millrace.errors import ProcessDiedError, SourceError
from millrace.job import Job
from millrace.launch import environment_of_child, write_job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage
from tests.test_pack import CLASSES, ONE_FILE_A_UNIT, names, packed_texts, profile, publish, put
from tests.test_workers import wait_for

BuildJob = Callable[..., Job]
NUM_FILES = 8
BATCH = {"frame_bytes": 2**16, "shard_bytes": 2**18, "level": 1}
needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="workers need two cores"
)


@pytest.fixture
def cores() -> Iterator[Callable[[int], None]]:
    """Lets this process, and those it starts, use so many cores."""
    all_of_them = os.sched_getaffinity(0)
    yield lambda count: os.sched_setaffinity(0, sorted(all_of_them)[:count])
    os.sched_setaffinity(0, all_of_them)


@pytest.fixture
def large_job(build_job: BuildJob) -> Job:
    """Texts in NUM_FILES units, together large enough for workers."""
    job = build_job(
        shards=ONE_FILE_A_UNIT | BATCH, task={"kind": "language_model", "block_bytes": 4096}
    )
    words = np.random.default_rng(0).integers(0, 10**9, (NUM_FILES, 140, 1000))
    for number, texts in enumerate(words):
        put(job, f"{number}.jsonl", (" ".join(map(str, text)) for text in texts))
    assert sum(file.stat().st_size for file in Path(job.folder).iterdir()) > WORTH_BYTES
    return job


def published_units(job: Job) -> dict[str, int]:
    """Path and time of writing of the manifest of every unit."""
    units = Path(job.store, job.pipeline, "shards", "units")
    return {str(path): path.stat().st_mtime_ns for path in units.glob("*/manifest.json")}


def elsewhere(job: Job, folder: Path) -> Job:
    return job.model_copy(update={"store": str(folder)})


@needs_two_cores
def test_workers_pack_what_one_process_packs(
    large_job: Job, cores: Callable[[int], None], opened: list[str], tmp_path: Path
) -> None:
    cores(1)
    alone = publish(large_job)
    assert opened
    opened.clear()
    cores(2)
    together = publish(elsewhere(large_job, tmp_path / "other"))

    assert together.digest == alone.digest
    assert [file.sha256 for file in together.files] == [file.sha256 for file in alone.files]
    assert opened == []  # all was read by workers, when it was profiled and when it was packed


@needs_two_cores
def test_a_killed_packing_goes_on_from_what_it_published(
    large_job: Job, cores: Callable[[int], None], opened: list[str], tmp_path: Path
) -> None:
    unbroken = publish(elsewhere(large_job, tmp_path / "unbroken"))
    profiled = profile(large_job)
    command = [sys.executable, "-m", "millrace", "pack", str(write_job(profiled, "pack"))]
    cores(2)

    packing = subprocess.Popen(
        command, env=environment_of_child(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(published_units(large_job)) >= 2, "no unit was published")
    packing.kill()
    packing.communicate()  # until the workers, which hold standard output too, are dead
    before = published_units(large_job)
    assert 2 <= len(before) < NUM_FILES, "it was not killed in the middle"
    assert not manifests.find(FsspecStorage(large_job.store), "p", "shards", profiled.key)

    cores(1)
    opened.clear()
    resumed = manifests.publish(FsspecStorage(large_job.store), pack(profiled))

    assert resumed.digest == unbroken.digest
    assert len(opened) == NUM_FILES - len(before)
    after = published_units(large_job)
    assert {path: after[path] for path in before} == before
    prove(large_job, resumed)


@needs_two_cores
def test_a_killed_worker_is_named_and_the_rest_goes_on_from_what_is_published(
    large_job: Job, cores: Callable[[int], None], tmp_path: Path
) -> None:
    unbroken = publish(elsewhere(large_job, tmp_path / "unbroken"))
    profiled = profile(large_job)
    cores(2)

    def kill_one() -> None:
        wait_for(lambda: published_units(large_job), "no unit was published")
        os.kill(children()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(ProcessDiedError, match=r"pack \d\.jsonl: the worker .* killed by SIGKILL"):
        pack(profiled)
    killer.join()
    assert not children()

    resumed = manifests.publish(FsspecStorage(large_job.store), pack(profiled))
    assert resumed.digest == unbroken.digest
    prove(large_job, resumed)


def children() -> list[int]:
    """Pids of the workers that this process has started."""
    told = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [pid for task in told for pid in task.read_text().split()]
    return [int(pid) for pid in pids if b"workers" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def prove(job: Job, made: Manifest) -> None:
    """Every shard that a manifest names is whole."""
    storage = FsspecStorage(job.store)
    fields = {name: Field(told[0], tuple(told[1])) for name, told in made.facts["fields"].items()}
    reader = ShardReader(storage, fields)
    assert sum(reader.prove(Shard.from_dict(s)) for s in made.facts["shards"]) > 0


def test_shards_do_not_depend_on_batches(
    build_job: BuildJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"a": i**0.5, "b": 1 / (i + 1), "label": f"{i * i % 7}"} for i in range(2000)]
    digests = set()
    for number, batch_bytes in enumerate((1, 777, 2**22)):
        job = build_job(
            str(tmp_path / f"store {number}"),
            **CLASSES,
            shards={"frame_bytes": 1000, "shard_bytes": 5000, "level": 3},
        )
        put(job, "a.jsonl", records)
        monkeypatch.setattr(unit, "BATCH_BYTES", batch_bytes)
        monkeypatch.setattr(unit, "HEAD_BYTES", batch_bytes)
        made = publish(job)
        digests.add(made.digest)

    assert len(digests) == 1
    assert len(made.files) > 5


def test_a_unit_that_fails_in_the_middle_publishes_nothing_and_leaves_no_thread(
    build_job: BuildJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit, "BATCH_BYTES", 2000)
    job = build_job(shards={"frame_bytes": 300, "shard_bytes": 600, "level": 1})
    put(job, "a.jsonl", names("x", 4000))
    profiled = profile(job)
    put(job, "a.jsonl", [*names("x", 3999), "changed"])
    before = threading.active_count()

    with pytest.raises(SourceError, match=r"pack a\.jsonl: its records differ"):
        pack(profiled)

    assert list(Path(job.store).rglob("*.zst")), "it failed before it wrote anything"
    assert published_units(job) == {}
    assert threading.active_count() == before


def test_a_file_larger_than_memory_may_be_is_packed_in_little_memory(build_job: BuildJob) -> None:
    job = build_job(task={"kind": "language_model", "block_bytes": 4096})
    rng, megabytes = np.random.default_rng(0), 320
    letters = rng.integers(97, 123, 2**20, np.uint8).tobytes().decode()
    with Path(job.folder, "a.jsonl").open("w") as file:
        for number in range(megabytes * 16):
            text = letters[number * 64 : number * 64 + 2**16] or letters[: 2**16]
            file.write(json.dumps({"text": f"{number} {text}"}) + "\n")
    code = """
import sys
from pathlib import Path
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.job import Job
from millrace import manifest as manifests
from millrace.storage import FsspecStorage

job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
made = manifests.publish(FsspecStorage(job.store), ingest(job))
pack(job.model_copy(update={"inputs": {"source_files": made.path}, "key": "0" * 64}))
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    path = write_job(job, "pack")

    found = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        env=environment_of_child(keeps_memory=False),
        check=True,
    )

    assert int(found.stdout.split()[-1]) / 1024 < 300


def test_the_second_copy_is_kept_once_the_first_ones_file_is_gone(build_job: BuildJob) -> None:
    job = build_job(shards=ONE_FILE_A_UNIT)
    put(job, "a.jsonl", names("both", 30) + names("a", 30))
    put(job, "b.jsonl", names("b", 30) + names("both", 30))
    first = publish(job)
    assert first.facts["num_duplicates"] == 30
    before = packed_texts(job, first)

    Path(job.folder, "a.jsonl").unlink()
    second = publish(job)

    after = packed_texts(job, second)
    assert second.facts["num_duplicates"] == 0
    assert sorted(all_of(after)) == sorted(names("both", 30) + names("b", 30))
    for split in SPLITS:
        assert set(after[split]) == {t for t in before[split] if not t.startswith("a ")}


def all_of(texts: dict[str, list[str]]) -> Iterable[str]:
    return [text for split in texts.values() for text in split]


def test_three_copies_of_a_file_are_packed_once(build_job: BuildJob) -> None:
    job = build_job(shards=ONE_FILE_A_UNIT)
    for letter in "abc":
        put(job, f"{letter}.jsonl", names("x", 60))

    made = publish(job)

    assert sorted(all_of(packed_texts(job, made))) == sorted(names("x", 60))
    assert made.facts["num_duplicates"] == 120


def test_no_shard_and_no_frame_holds_records_of_two_splits(build_job: BuildJob) -> None:
    job = build_job(shards=ONE_FILE_A_UNIT | {"frame_bytes": 300, "shard_bytes": 900, "level": 1})
    for letter in "abc":
        put(job, f"{letter}.jsonl", names(letter, 300))

    made = publish(job)

    storage = FsspecStorage(job.store)
    shards = [Shard.from_dict(value) for value in made.facts["shards"]]
    assert len({shard.file.path for shard in shards}) == len(shards) > 20
    reader = ShardReader(storage, Samples(storage, made, "train").fields)
    for shard in shards:
        data = shard.file.read(storage)
        for frame, start in enumerate(shard.frames.start):
            coded = data[start : start + shard.frames.num_bytes[frame]]
            drawn = draw_splits(reader.decode(shard, frame, coded)["record"], job.spec.split)
            assert {SPLITS[number] for number in drawn} == {shard.split}
