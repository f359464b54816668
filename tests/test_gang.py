"""Trials on several ranks: studies of them, and what becomes of a gang that loses one."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from millrace import manifest as manifests
from millrace.errors import ProcessFailedError
from millrace.launch import follow, write_job
from millrace.manifest import Manifest
from millrace.tune.connection import LocalWorker
from millrace.tune.pool import WorkerPool
from millrace.tune.rung import Rung, RungJob
from millrace.tune.study import tune
from tests.pipelines_for_tests import NAME, Line, Tree

UNEVEN = '''

class Short(Linear):
    """The second rank has no memory left when others have."""

    def forward(self, inputs):
        if os.environ["RANK"] == "1":
            raise MemoryError("out of memory")
        return super().forward(inputs)


class Half(Linear):
    """The second rank stops once, as if somebody had stopped it."""

    def forward(self, inputs):
        mark = pathlib.Path(os.environ["MILLRACE_TEST_PAUSED"])
        if os.environ["RANK"] == "1" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().forward(inputs)
'''

BuildPool = Callable[..., WorkerPool]


@pytest.fixture
def build_pool(points: Line, tmp_path: Path) -> Iterator[BuildPool]:
    """A pool of one worker of two ranks."""
    line = points.copy(tmp_path / "line")
    networks = line.root / "source" / "networks.py"
    networks.write_text(networks.read_text() + UNEVEN)
    search = line.spec.search.model_dump() | {"ranks": 2}
    with ExitStack() as stack:

        def build(network: str, **options: Any) -> WorkerPool:
            job = line.job(network={"name": f"networks.py:{network}"}, search=search)
            path = write_job(job, "worker")
            return stack.enter_context(WorkerPool(lambda: LocalWorker(path), 1, **options))

        yield build


def end(pool: WorkerPool, job: RungJob) -> Rung:
    pool.submit(job)
    ((_, rung),) = pool.wait()
    return rung


def search_on_ranks(line: Line, **fields: Any) -> dict[str, Any]:
    return line.spec.search.model_dump() | {"ranks": 2, "trials": 5} | fields


@pytest.fixture(scope="module")
def unbroken(points: Line, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A study of one worker, whose trials have two ranks."""
    line = points.copy(tmp_path_factory.mktemp("unbroken") / "line")
    return tune(line.job("study", search=search_on_ranks(line, workers=1)))


def test_a_study_on_ranks_is_the_same_with_two_workers_and_near_that_of_one_rank(
    points: Line,
    tuned_points: Line,
    unbroken: Manifest,
    tmp_path: Path,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = points.copy(tmp_path / "line")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)  # here: two workers of two ranks have room

    found = tune(line.job("study", search=search_on_ranks(line, workers=2)))

    alone = manifests.current(tuned_points.storage, NAME, "study")
    assert found.facts == unbroken.facts
    assert found.facts["default_loss"] == pytest.approx(alone.facts["default_loss"], rel=1e-4)
    assert not tree.pids("millrace")


def test_a_killed_rank_ends_its_gang_and_changes_nothing(
    points: Line, unbroken: Manifest, tmp_path: Path, tree: Tree
) -> None:
    line = points.copy(tmp_path / "line")

    said = []
    for event in follow("tune", line.job("study", search=search_on_ranks(line))):
        said.append(event)
        if event["event"] == "rung" and event["trial"] == 1:
            tree.kill("millrace trial_rank")

    messages = [event["message"] for event in said if event["event"] == "log"]
    assert any("rank 1 of a trial ended with -9" in message for message in messages)
    assert any("worker died (exit status 75)" in message for message in messages)
    assert manifests.read(line.storage, said[-1]["path"]).digest == unbroken.digest
    assert tree.is_gone()


def test_an_idle_gang_that_loses_a_rank_is_replaced(
    build_pool: BuildPool, tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = build_pool("Linear")
    first = end(pool, RungJob(0, {}, 6))
    tree.kill("millrace trial_rank")

    second = end(pool, RungJob(0, {}, 18))

    assert (first.step, second.step) == (6, 18)
    assert second.loss < first.loss
    assert "rank 1 of a trial ended with -9" in capsys.readouterr().out


def test_the_first_ranks_clock_ends_a_rung_on_all_ranks(build_pool: BuildPool) -> None:
    pool = build_pool("Linear")

    short = end(pool, RungJob(0, {}, 18, max_seconds=1e-9))
    whole = end(pool, RungJob(0, {}, 18))

    assert (short.step, whole.step) == (1, 18)


def test_memory_that_one_rank_lacks_fails_the_trial_and_the_next_one_has_a_new_gang(
    build_pool: BuildPool, tree: Tree
) -> None:
    pool = build_pool("Short")

    found = [end(pool, RungJob(trial, {}, 2)) for trial in range(2)]

    assert [rung.failed for rung in found] == ["out of memory: out of memory"] * 2
    with pool:
        pass
    assert tree.is_gone()


def test_an_error_on_all_ranks_is_told_in_its_own_words(build_pool: BuildPool) -> None:
    with pytest.raises(ProcessFailedError, match=r"exited with 1(.|\n)*the flux capacitor"):
        end(build_pool("Raising"), RungJob(0, {}, 2))


def test_a_rank_that_is_paused_is_noticed_and_its_gang_replaced(
    build_pool: BuildPool,
    tmp_path: Path,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MILLRACE_TEST_PAUSED", str(tmp_path / "paused"))

    rung = end(build_pool("Half", silence_seconds=5.0), RungJob(0, {}, 6))

    assert (rung.step, rung.failed) == (6, "")
    assert "has said nothing for 5" in capsys.readouterr().out
    assert len(tree.pids("millrace trial_rank")) == 1


def test_ranks_die_with_a_worker_that_is_killed(build_pool: BuildPool, tree: Tree) -> None:
    pool = build_pool("Linear")
    end(pool, RungJob(0, {}, 2))
    (before,) = tree.pids("millrace trial_rank")

    os.kill(tree.pids("millrace worker")[0], signal.SIGKILL)
    again = end(pool, RungJob(0, {}, 6))

    assert again.step == 6
    assert before not in tree.pids("millrace trial_rank")
