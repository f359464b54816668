import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from millrace.errors import ProcessFailedError
from millrace.launch import write_job
from millrace.tune import pool as pools
from millrace.tune.connection import LocalWorker
from millrace.tune.pool import WorkerPool
from millrace.tune.rung import Rung, RungJob
from tests.pipelines_for_tests import Line, Tree

BuildPool = Callable[..., WorkerPool]


@pytest.fixture
def build_pool(points: Line, tmp_path: Path) -> Iterator[BuildPool]:
    """A pool of one worker that trains a network of the tests' file."""
    line = points.copy(tmp_path / "line")
    with ExitStack() as stack:

        def build(network: str = "Linear", **options: Any) -> WorkerPool:
            job = line.job(network={"name": f"networks.py:{network}"})
            path = write_job(job, "worker")
            return stack.enter_context(WorkerPool(lambda: LocalWorker(path), 1, **options))

        yield build


class Mute:
    """A `Connection` to a worker that says nothing and has died."""

    def fileno(self) -> int:
        raise AssertionError("it is not listened to")

    def write(self, data: bytes) -> None:
        """Hear nothing."""

    def wait(self) -> int:
        return -9

    def bury(self) -> None:
        """Hold nothing."""


def ends(pool: WorkerPool, *jobs: RungJob) -> list[tuple[RungJob, Rung]]:
    """How these jobs end, in the order in which they do."""
    for job in jobs:
        pool.submit(job)
    found: list[tuple[RungJob, Rung]] = []
    while len(found) < len(jobs):
        found += pool.wait()
    return found


def test_a_training_goes_on_from_its_last_rung_and_repetitions_differ(
    build_pool: BuildPool,
) -> None:
    pool = build_pool()
    first, again = RungJob(0, {}, 6), RungJob(0, {}, 6, repetition=1)

    (_, short), (_, other) = ends(pool, first, again)
    ((_, longer),) = ends(pool, RungJob(0, {}, 18))
    pool.forget((0, 0))
    ((_, anew),) = ends(pool, RungJob(0, {}, 18))

    assert (short.step, longer.step) == (6, 18)
    assert longer.loss < short.loss
    assert anew.loss == longer.loss
    assert other.loss != short.loss


def test_a_rung_with_little_time_makes_one_step_and_says_where_it_stands(
    build_pool: BuildPool,
) -> None:
    ((_, rung),) = ends(build_pool(), RungJob(0, {}, 18, max_seconds=1e-9))

    assert rung.step == 1
    assert math.isfinite(rung.loss)


def test_a_job_that_kills_three_workers_has_failed(build_pool: BuildPool, tree: Tree) -> None:
    ((_, rung),) = ends(build_pool("Deadly"), RungJob(4, {}, 2))

    assert rung.failed == (
        "each of 3 workers was lost over it; the last died (exit status -9) (memory?)"
    )
    assert math.isnan(rung.loss)
    assert not tree.pids()


def test_a_trial_that_needs_more_memory_than_there_is_has_failed(build_pool: BuildPool) -> None:
    ((_, rung),) = ends(build_pool("Hungry"), RungJob(0, {}, 2))

    assert rung.failed.startswith("out of memory: ")


def test_values_that_do_not_go_together_fail_their_trial(build_pool: BuildPool) -> None:
    pool = build_pool()

    found = dict(ends(pool, RungJob(0, {"train.batch": 15}, 2), RungJob(1, {}, 2)))

    assert sorted(bool(rung.failed) for rung in found.values()) == [False, True]


def test_an_error_in_a_users_network_ends_the_pool_with_its_last_words(
    build_pool: BuildPool,
) -> None:
    with pytest.raises(ProcessFailedError, match=r"exited with 1(.|\n)*the flux capacitor"):
        ends(build_pool("Raising"), RungJob(0, {}, 2))


def test_a_worker_that_is_paused_is_replaced_and_not_heard_again(
    build_pool: BuildPool,
    tmp_path: Path,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MILLRACE_TEST_PAUSED", str(tmp_path / "paused"))
    pool = build_pool("Pausing", silence_seconds=5.0)

    ((_, rung),) = ends(pool, RungJob(0, {}, 6))

    assert (rung.step, rung.failed) == (6, "")
    assert rung.seconds > 5  # the time of the one that was paused has been spent, too
    assert "has said nothing for 5" in capsys.readouterr().out
    assert len(tree.pids("millrace worker")) == 1


def test_a_worker_that_comes_to_no_end_is_given_up(
    build_pool: BuildPool, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "STUCK_SECONDS", 4.0)

    ((_, rung),) = ends(build_pool("Stuck"), RungJob(5, {}, 2))

    assert "3 workers was lost over it; the last came to no end" in rung.failed
    assert not tree.pids("millrace worker")


def test_what_an_earlier_attempt_says_late_is_not_heard(build_pool: BuildPool) -> None:
    pool, job = build_pool(), RungJob(3, {}, 6)
    told = {"event": "rung", "trial": 3, "repetition": 0, "loss": 0.5, "step": 6, "steps": 6}
    worker = pools._Worker(Mute(), pools._Task(job, attempt=2))

    late = pool._hear(worker, [json.dumps(told | {"attempt": 1, "seconds": 1.0})])
    other = pool._hear(worker, [json.dumps(told | {"attempt": 2, "trial": 4, "seconds": 1.0})])
    own = pool._hear(worker, [json.dumps(told | {"attempt": 2, "seconds": 1.0})])

    assert (late, other) == ([], [])
    assert own == [(job, Rung(0.5, 6, 1.0, step_seconds=1 / 6))]
    assert worker.task is None


def test_blank_lines_of_a_worker_are_not_its_last_words(
    build_pool: BuildPool, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = pools._Worker(Mute())

    heard = build_pool()._hear(worker, ["", "  ", "words"])

    assert heard == []
    assert list(worker.tail) == ["words"]
    assert capsys.readouterr().out.count('"event": "log"') == 1
