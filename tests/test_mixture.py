from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.data.ingest import ingest
from millrace.data.mixture import divide
from millrace.data.pack import pack
from millrace.data.samples import Samples
from millrace.errors import SourceError
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage
from tests.test_pack import ONE_FILE_A_UNIT, names, profile, publish, put, written

BuildJob = Callable[..., Job]

URLS = {"wiki": "w*.jsonl", "code": "c*.jsonl"}


def mixed(mix: dict[str, float], url: Any = URLS) -> dict[str, Any]:
    train = {"steps": 5, "batch": 4, "mix": mix}
    return {"source": {"url": url}, "train": train, "shards": ONE_FILE_A_UNIT}


def fill(job: Job) -> None:
    for name in ("w1", "w2", "c1", "c2"):
        put(job, f"{name}.jsonl", names(name, 30))


def texts_of(job: Job, made: Manifest, source: str, split: str = "train") -> set[str]:
    samples = Samples(FsspecStorage(job.store), made, split, source=source)
    return {
        tokens[:length].tobytes().decode()
        for batch in samples.batches(100)
        for tokens, length, _ in zip(*batch.values(), strict=True)
    }


def test_a_file_belongs_to_the_first_key_that_matches() -> None:
    paths = ["code/a.py", "code/b.c", "wiki/a.py", "wiki/c"]

    assert divide(paths, {"wiki": "wiki/*", "py": "*.py", "rest": "*"}) == {
        "py": [0],
        "rest": [1],
        "wiki": [2, 3],
    }
    assert divide(paths, {"py": "*.py", "wiki": "wiki/*", "rest": "*"})["py"] == [0, 2]
    assert divide(paths, {}) == {"": [0, 1, 2, 3]}


@given(st.lists(st.sampled_from(["a/x", "b/x", "b/y"]), min_size=1))
def test_every_file_has_one_source(paths: list[str]) -> None:
    paths = [*paths, "a/z", "b/x", "b/y"]

    found = divide(paths, {"b": "b/x", "rest": "*"})

    assert sorted(number for numbers in found.values() for number in numbers) == list(
        range(len(paths))
    )


def test_a_file_that_no_key_matches_is_refused_by_name() -> None:
    with pytest.raises(SourceError, match=r"code/b\.py matches none of wiki, \*\.c") as caught:
        divide(["wiki/a", "code/b.py"], {"wiki": "wiki/*", "*.c": "*.c"})

    assert "source.exclude" in caught.value.fix


@pytest.mark.parametrize("globs", [{"a": "a/*", "b": "b/*"}, {"all": "*", "b": "a/*"}])
def test_a_key_that_is_left_without_files_is_refused(globs: dict[str, str]) -> None:
    with pytest.raises(SourceError, match="none is left for `b`"):
        divide(["a/x"], globs)


@pytest.mark.parametrize(
    "job_of",
    [
        lambda build: build(**mixed({"wiki": 3, "code": 1})),
        lambda build: build(**mixed({"w*": 3, "c*": 1}, url="*.jsonl")),
    ],
    ids=["names", "globs"],
)
def test_each_source_is_opened_alone(
    build_job: BuildJob, job_of: Callable[[BuildJob], Job]
) -> None:
    job = job_of(build_job)
    fill(job)

    made = publish(job)

    for key, letter in zip(job.spec.train.mix, "wc", strict=True):
        found = {
            split: texts_of(job, made, key, split) for split in ("train", "validation", "test")
        }
        counts = made.facts["sources"][key]
        assert {split: len(texts) for split, texts in found.items()} == counts
        assert set().union(*found.values()) == {*names(f"{letter}1", 30), *names(f"{letter}2", 30)}
    whole = Samples(FsspecStorage(job.store), made, "train")
    assert len(whole) == sum(counts["train"] for counts in made.facts["sources"].values())


def test_files_of_two_sources_share_no_unit_even_where_their_names_alternate(
    build_job: BuildJob,
) -> None:
    job = build_job(**mixed({"*[13].jsonl": 3, "*": 1}, url="*.jsonl") | {"shards": {}})
    for number in range(4):
        put(job, f"{number}.jsonl", names(f"{number}", 30))

    made = publish(job)

    odd = texts_of(job, made, "*[13].jsonl") | texts_of(job, made, "*[13].jsonl", "test")
    assert {text[0] for text in odd} == {"1", "3"}
    assert {text[0] for text in texts_of(job, made, "*")} == {"0", "2"}


def test_neither_other_weights_nor_keys_pack_a_unit_again_that_keeps_its_files(
    build_job: BuildJob,
) -> None:
    job = build_job(**mixed({"wiki": 3, "code": 1}))
    fill(job)
    first = publish(job)
    before = written(job)

    heavier = publish(build_job(**mixed({"code": 9, "wiki": 1})))
    finer = publish(build_job(**mixed({"wiki/w1*": 3, "wiki": 1, "code": 1})))
    alike = publish(build_job(**mixed({})))

    assert written(job) == before
    assert heavier.digest == first.digest
    assert set(finer.facts["sources"]) == {"wiki/w1*", "wiki", "code"}
    assert {file.path for file in alike.files} == {file.path for file in first.files}
    assert "sources" not in alike.facts
    assert not any("source" in shard for shard in alike.facts["shards"])


def test_another_source_reads_and_packs_its_own_files_only(
    build_job: BuildJob, opened: list[str]
) -> None:
    job = build_job(**mixed({"wiki": 3, "code": 1}))
    fill(job)
    publish(job)
    before = written(job)
    put(job, "n1.jsonl", names("n1", 30))
    opened.clear()

    made = publish(
        build_job(**mixed({"wiki": 3, "code": 1, "new": 1}, url=URLS | {"new": "n*.jsonl"}))
    )

    assert set(opened) == {"n1.jsonl"}
    assert before.items() <= written(job).items()
    assert set(made.facts["sources"]) == {"wiki", "code", "new"}


def test_one_url_is_packed_as_it_was_before_there_were_mixtures(build_job: BuildJob) -> None:
    job = build_job(shards={"level": 3, "frame_bytes": 2**20})
    fill(job)

    made = pack(profile(job))

    # Of the unit's key: another one would pack every data set there is again.
    assert {file.path.split("/")[3] for file in made.files} == {"e1e14eb5a39f2fc9"}
    assert all(
        set(shard) == {"file", "split", "frames", "classes"} for shard in made.facts["shards"]
    )


def test_a_file_of_no_source_stops_the_packing_before_anything_is_written(
    build_job: BuildJob,
) -> None:
    job = build_job(**mixed({"wiki": 1}))
    fill(job)

    with pytest.raises(SourceError, match=r"code/c1\.jsonl matches none of wiki"):
        publish(job)
    assert written(job) == {}


def test_a_source_without_records_to_train_on_is_refused(build_job: BuildJob) -> None:
    job = build_job(**mixed({"wiki": 3, "code": 1}))
    fill(job)
    for name in ("w1", "w2"):  # code comes first in the listing: these are its duplicates
        put(job, f"{name}.jsonl", names(name.replace("w", "c"), 30))

    with pytest.raises(SourceError, match=r"files of `wiki`.*empty \(60 records, 0 of them no dup"):
        publish(job)


@pytest.mark.parametrize("name", ["wiki", "code"])
def test_the_error_for_unusable_records_names_all_urls(build_job: BuildJob, name: str) -> None:
    job = build_job(**mixed({"wiki": 3, "code": 1}))
    for letter in "wc":
        Path(job.folder, f"{letter}.jsonl").write_text('{"other": 1}\n')

    with pytest.raises(SourceError, match=rf"2 files of .*{name}: {name[0]}\*\.jsonl"):
        ingest(job)
