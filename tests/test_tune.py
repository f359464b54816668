import math
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from millrace import manifest as manifests
from millrace.errors import CorruptError, ProcessDiedError, ProcessFailedError, TrainingError
from millrace.job import Job
from millrace.launch import follow, write_job
from millrace.manifest import Manifest
from millrace.search import Choices, Range, Values
from millrace.tune import pool as pools
from millrace.tune import study as studies
from millrace.tune.halving import rungs
from millrace.tune.pool import Pool, RungJob
from millrace.tune.space import suggest
from millrace.tune.study import tune
from tests.pipelines_for_tests import NAME, Line, Tree


def search_section(line: Line, **fields: Any) -> dict[str, Any]:
    return line.spec.search.model_dump() | fields


def trials_of(line: Line) -> list[optuna.trial.FrozenTrial]:
    database = line.root.joinpath("work", "studies", f"{NAME}.db")
    return optuna.load_study(study_name="study", storage=f"sqlite:///{database}").get_trials(
        deepcopy=False
    )


def study_of(line: Line) -> Manifest:
    return manifests.current(line.storage, NAME, "study")


def test_a_study_begins_with_the_default_prunes_and_finds_something_better(
    tuned_points: Line,
) -> None:
    facts = study_of(tuned_points).facts

    states = [trial["state"] for trial in facts["trials"]]
    assert facts["trials"][0]["values"] == {"train.learning_rate": 0.01, "train.batch": 16}
    assert states[0] == "COMPLETE"
    assert len(states) == 7
    assert "PRUNED" in states
    assert facts["best_loss"] == min(t["loss"] for t in facts["trials"] if t["loss"] is not None)
    assert facts["best_loss"] <= facts["default_loss"]
    assert facts["rungs"] == [2, 6, 18]
    for trial in facts["trials"]:
        steps = [int(step) for step in trial["rungs"]]
        assert steps == facts["rungs"][: len(steps)]
        assert (len(steps) == 3) == (trial["state"] == "COMPLETE")


def test_a_study_is_kept_in_sqlite_and_goes_on_where_it_ended(
    tuned_points: Line, tmp_path: Path, tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    line = tuned_points.copy(tmp_path / "line")

    again = tune(line.job("study"))

    assert again.digest == study_of(tuned_points).digest
    assert [trial.state.name for trial in trials_of(line)] == [
        trial["state"] for trial in again.facts["trials"]
    ]
    assert "the study goes on after 7 trials" in capsys.readouterr().out
    assert not tree.pids("millrace worker")


def test_one_worker_finds_what_two_find(points: Line, tuned_points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")

    found = tune(line.job("study", search=search_section(line, workers=1)))

    assert found.facts == study_of(tuned_points).facts


def test_a_killed_worker_changes_nothing(
    points: Line, tuned_points: Line, tmp_path: Path, tree: Tree
) -> None:
    line = points.copy(tmp_path / "line")

    said = []
    for event in follow("tune", line.job("study")):
        said.append(event)
        if event["event"] == "rung" and event["trial"] == 1:
            tree.kill("millrace worker")

    made = manifests.read(line.storage, said[-1]["path"])
    assert made.digest == study_of(tuned_points).digest
    assert any("a worker died (exit status -9)" in e.get("message", "") for e in said)


def test_a_killed_coordinator_leaves_nothing_running_and_nothing_counted_twice(
    points: Line, tuned_points: Line, tmp_path: Path, tree: Tree
) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job("study")

    following = follow("tune", job)
    next(event for event in following if event["event"] == "progress" and event["done"] == 3)
    next(event for event in following if event["event"] == "rung")
    tree.kill("millrace tune")
    with pytest.raises(ProcessDiedError, match="killed by SIGKILL"):
        list(following)
    assert tree.is_gone()
    states = {trial.state for trial in trials_of(line)}
    made = tune(line.job("study", search=search_section(line, workers=1)))

    assert TrialState.RUNNING in states
    assert made.digest == study_of(tuned_points).digest
    assert len(trials_of(line)) == 7
    assert {trial.state for trial in trials_of(line)} <= {TrialState.COMPLETE, TrialState.PRUNED}


def test_a_kill_between_two_tells_of_a_wave_costs_the_wave_not_the_result(
    tuned_points: Line, tmp_path: Path
) -> None:
    line = tuned_points.copy(tmp_path / "line")
    with closing(sqlite3.connect(line.root / "work" / "studies" / f"{NAME}.db")) as database:
        database.execute("UPDATE trials SET state = 'RUNNING' WHERE number >= 5")
        database.commit()

    made = tune(line.job("study", search=search_section(line, workers=1)))

    assert made.digest == study_of(tuned_points).digest


def test_a_study_of_which_no_trial_ends_well_is_an_error(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    search = search_section(line, trials=2, together=2, workers=1)
    job = line.job("study", network={"name": "networks.py:Nan"}, search=search)

    with pytest.raises(TrainingError, match="best of 2 trials of p: none ended with a finite loss"):
        tune(job)

    assert {trial.state for trial in trials_of(line)} == {TrialState.FAIL}


def test_a_damaged_study_database_is_named(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    folder = line.root / "work" / "studies"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.db").write_bytes(b"this is no database" * 100)

    with pytest.raises(CorruptError, match=r"p\.db: file is not a database.*Delete the file"):
        tune(line.job("study"))


@pytest.fixture
def deadly_pool(points: Line, tmp_path: Path) -> Iterator[Pool]:
    line = points.copy(tmp_path / "line")
    path = write_job(line.job(network={"name": "networks.py:Deadly"}), "worker")
    with Pool(path, 1) as pool:
        yield pool


def test_a_job_that_kills_three_workers_is_given_up(deadly_pool: Pool, tree: Tree) -> None:
    with pytest.raises(ProcessDiedError, match=r"3 workers died of it, the last with .* -9"):
        list(deadly_pool.run([RungJob(4, {}, 2)]))

    assert not tree.pids()


def test_an_error_in_a_users_network_ends_the_pool_with_its_last_words(
    points: Line, tmp_path: Path, tree: Tree
) -> None:
    job = points.copy(tmp_path / "line").job(network={"name": "networks.py:Raising"})

    with (
        pytest.raises(ProcessFailedError, match=r"exited with 1(.|\n)*the flux capacitor"),
        Pool(write_job(job, "worker"), 1) as pool,
    ):
        list(pool.run([RungJob(0, {}, 2)]))

    assert tree.is_gone()


def test_values_are_drawn_from_the_space_and_keep_their_kind() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space: dict[str, Values] = {
        "train.batch": Range(low=2, high=4),
        "train.learning_rate": Range(low=0.001, high=0.1, log=True),
        "network.width": Choices(choices=(16, 32)),
    }

    drawn = [suggest(study.ask(), space) for _ in range(200)]

    assert {values["train.batch"] for values in drawn} == {2, 3, 4}
    assert {values["network.width"] for values in drawn} == {16, 32}
    rates = [math.log10(float(values["train.learning_rate"])) for values in drawn]
    assert all(-3 <= rate <= -1 for rate in rates)
    assert -2.1 < sum(rates) / len(rates) < -1.9


@pytest.mark.parametrize(("steps", "expected"), [(9, (1, 3, 9)), (90, (10, 30, 90))])
def test_rungs_are_a_ninth_a_third_and_all(
    points: Line, steps: int, expected: tuple[int, ...]
) -> None:
    job: Job = points.job(search=search_section(points, steps=steps))

    assert rungs(job.spec.search.steps) == expected


def test_a_worker_that_falls_silent_is_named_by_its_trial(
    points: Line, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "SILENCE_SECONDS", 0.6)
    job = points.copy(tmp_path / "line").job(network={"name": "networks.py:Stuck"})

    with (
        pytest.raises(ProcessDiedError, match="train trial 5 to step 2: its worker has said nothi"),
        Pool(write_job(job, "worker"), 1) as pool,
    ):
        list(pool.run([RungJob(5, {}, 2)]))

    assert tree.is_gone()


def test_blank_lines_of_a_worker_are_not_its_last_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.DEVNULL) as process:
        worker = pools._Worker(process)

        heard = [pools._hear(worker, line) for line in ("", "  ", "words")]

    assert heard == [None] * 3
    assert list(worker.tail) == ["words"]
    assert capsys.readouterr().out.count('"event": "log"') == 1


def test_a_loss_of_exactly_zero_is_the_best(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job("study")
    study = optuna.create_study()
    for loss in (0.5, 0.0, 0.25):
        study.add_trial(
            optuna.trial.create_trial(
                params={"train.learning_rate": 0.01, "train.batch": 16},
                distributions={
                    "train.learning_rate": optuna.distributions.FloatDistribution(1e-4, 0.1),
                    "train.batch": optuna.distributions.CategoricalDistribution((8, 16, 32)),
                },
                value=loss,
                user_attrs={"seconds": 1.0},
            )
        )

    made = studies._describe(
        job, line.storage, manifests.current(line.storage, NAME, "shards"), study
    )

    assert (made.facts["best_trial"], made.facts["best_loss"]) == (1, 0.0)
