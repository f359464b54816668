from pathlib import Path

import pytest

from millrace.job import Job
from millrace.manifest import Manifest, point, publish
from millrace.plan import history
from millrace.plan.diary import NOUN_OF_VERB, Diary
from millrace.plan.stages import NOUNS, SIZED_BY, size_of
from millrace.storage import FsspecStorage
from tests.conftest import BuildJob

MADE = Manifest("p", "shards", "k" * 40, seconds=2.0)


@pytest.fixture
def job(build_job: BuildJob) -> Job:
    """A job whose source files are listed."""
    job = build_job()
    listed = Manifest("p", "source_files", "s" * 40, facts={"num_bytes": 4000})
    published = publish(FsspecStorage(job.store), listed)
    return job.model_copy(
        update={"inputs": {"source_files": published.path}, "usd_per_hour": 3600.0}
    )


def newest(job: Job) -> list[history.Entry]:
    return history.newest(FsspecStorage(job.store), "p", "shards")


def test_a_step_is_expected_to_take_what_it_took_before(job: Job) -> None:
    storage = FsspecStorage(job.store)

    Diary(storage, job, "pack").keep(MADE, seconds=2.5)
    later = Manifest("p", "shards", "l" * 40, seconds=2.0, made_at="2099-01-01T00:00:00+00:00")
    Diary(storage, job, "pack").keep(later, seconds=2.0)

    first, second = newest(job)
    assert (first.size, first.predicted) == (4000, None)
    assert first.outside_seconds == pytest.approx(0.5)
    assert first.usd == pytest.approx(2.0)
    assert second.predicted is not None
    assert second.predicted.value == pytest.approx(2.0, rel=0.05)
    assert second.predicted.holds(second.seconds)


def test_what_is_published_by_another_process_is_found_by_the_jobs_key(job: Job) -> None:
    storage = FsspecStorage(job.store)
    made = publish(storage, Manifest("p", "checkpoint", "c" * 40, seconds=7.0))
    keyed = job.model_copy(update={"key": "c" * 40})

    Diary(storage, keyed, "train").keep_published(seconds=9.0)

    entry = history.of_manifest(storage, made)
    assert entry is not None
    assert entry.seconds == 7.0
    assert entry.outside_seconds == pytest.approx(2.0)


def test_a_store_that_refuses_the_history_holds_no_step_up(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = FsspecStorage(job.store)
    Path(job.store, "p", "history").write_text("in the way")

    Diary(storage, job, "pack").keep(MADE, seconds=2.0)
    Diary(storage, job, "train").keep_published(seconds=2.0)

    assert "this run is not recorded" in capsys.readouterr().out


def test_a_plan_of_other_shards_or_of_another_version_predicts_nothing(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = FsspecStorage(job.store)
    shards = publish(storage, Manifest("p", "shards", "a" * 40))
    trained = job.model_copy(update={"inputs": {"shards": shards.path}, "key": "c" * 40})
    for origin in ("other", shards.digest):
        plan = Manifest("p", "plan", f"{origin:0<40}", inputs={"shards": origin})
        point(storage, publish(storage, plan))
        Diary(storage, trained, "train")

    told = capsys.readouterr().out
    assert "expected" not in told
    assert told.count("not predicted") == 1  # the plan of these shards has no outlook


def test_processes_that_make_no_noun_leave_no_entry(job: Job) -> None:
    Diary(FsspecStorage(job.store), job, "rank")

    assert FsspecStorage(job.store).list("p/history") == {}


def test_every_noun_has_a_verb_and_those_sized_by_another_come_after_it() -> None:
    assert sorted(NOUN_OF_VERB.values()) == sorted(NOUNS)
    assert all(NOUNS.index(by) < NOUNS.index(noun) for noun, by in SIZED_BY.items())


def test_a_steps_size_is_bytes_of_what_it_reads_or_samples_of_what_it_computes(job: Job) -> None:
    spec = job.spec
    inputs = {
        "source_files": Manifest("p", "source_files", "k", facts={"num_bytes": 123}),
        "shards": Manifest("p", "shards", "k", facts={"splits": {"test": {"num_samples": 45}}}),
    }

    assert size_of("shards", spec, inputs) == 123
    assert size_of("evaluation", spec, inputs) == 45
    assert size_of("checkpoint", spec, inputs) == spec.train.steps * spec.train.batch
    assert size_of("study", spec, {}) == pytest.approx(
        spec.train.batch * spec.search.trials * spec.search.steps * 7 / 27
    )
    assert size_of("source_files", spec, {}) == 1
