import math
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from millrace import manifest as manifests
from millrace.errors import CorruptError, ProcessDiedError, StorageError, TrainingError
from millrace.launch import follow
from millrace.manifest import Manifest
from millrace.search import Choices, Range, Values
from millrace.tune import study as studies
from millrace.tune.record import Record
from millrace.tune.space import suggest
from millrace.tune.study import tune
from tests.pipelines_for_tests import NAME, Line, Tree


def search_section(line: Line, **fields: Any) -> dict[str, Any]:
    return line.spec.search.model_dump() | fields


def num_recorded(line: Line) -> int:
    """Trials of which something is recorded, be they ended or at rest."""
    file = line.root / "work" / "studies" / f"{NAME}.db"
    return Record(f"sqlite:///{file}", "study").num_trials


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
    assert facts["best_loss"] == facts["trials"][facts["best_trial"]]["loss"]
    assert facts["best_mean"] <= facts["default_mean"]
    assert facts["seed_noise"] > 0
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
    recorded = sorted(trials_of(line), key=lambda trial: trial.user_attrs["trial"])
    assert [trial.state.name for trial in recorded] == [t["state"] for t in again.facts["trials"]]
    assert [trial.params for trial in recorded] == [t["values"] for t in again.facts["trials"]]
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
    recorded, ended = num_recorded(line), trials_of(line)
    made = tune(line.job("study", search=search_section(line, workers=1)))

    assert 3 <= recorded <= 7
    assert len(ended) < 7
    assert {trial.state for trial in ended} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert made.digest == study_of(tuned_points).digest
    assert sorted(trial.user_attrs["trial"] for trial in trials_of(line)) == list(range(7))


def test_a_study_whose_database_is_gone_begins_anew_and_ends_the_same(
    tuned_points: Line, tmp_path: Path
) -> None:
    line = tuned_points.copy(tmp_path / "line")
    (line.root / "work" / "studies" / f"{NAME}.db").unlink()

    made = tune(line.job("study", search=search_section(line, workers=1)))

    assert made.digest == study_of(tuned_points).digest
    assert len(trials_of(line)) == 7


def test_a_database_that_goes_in_the_middle_is_named_and_the_study_begun_anew(
    points: Line, tuned_points: Line, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    database = line.root / "work" / "studies" / f"{NAME}.db"

    following = follow("tune", line.job("study"))
    next(event for event in following if event["event"] == "progress" and event["done"] == 2)
    database.unlink()
    with pytest.raises(StorageError, match=r"record trial \d in .*p\.db: the file is gone"):
        list(following)
    made = tune(line.job("study"))

    assert made.digest == study_of(tuned_points).digest


def test_the_last_study_s_best_are_tried_after_the_default(
    tuned_points: Line, tmp_path: Path
) -> None:
    line = tuned_points.copy(tmp_path / "line")
    last = study_of(line).facts["trials"]

    made = tune(line.job("another", search=search_section(line, seed=1, trials=4)))

    complete = [trial for trial in last if trial["state"] == "COMPLETE"]
    best = {str(trial["values"]) for trial in complete if trial["number"]}
    assert best
    tried = [trial["values"] for trial in made.facts["trials"]]
    assert tried[0] == last[0]["values"]
    assert best <= {str(values) for values in tried}


def test_a_study_of_fewer_trials_than_there_are_proposals_ends_well(
    tuned_points: Line, tmp_path: Path
) -> None:
    line = tuned_points.copy(tmp_path / "line")
    search = search_section(line, trials=2, together=2)

    made = tune(line.job("night", search=search))  # the default and the best of the last study

    assert [trial["number"] for trial in made.facts["trials"]] == [0, 1]


def test_a_budget_that_no_trial_can_end_in_is_told(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    search = search_section(line, max_usd=1e-9)

    with pytest.raises(TrainingError, match=r"of 3 trials: none .* are spent\. Raise `search\.max"):
        tune(line.job("study", search=search))

    assert {tuple(trial.intermediate_values) for trial in trials_of(line)} == {(2,)}


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({}, math.inf),
        ({"max_seconds": 60}, 60.0),
        ({"max_usd": 2}, 4.0),  # at a dollar a second of a machine with two workers
        ({"max_usd": 2, "max_seconds": 3}, 3.0),
        ({"max_usd": 2, "workers": 1}, 2.0),
    ],
)
def test_a_budget_in_dollars_is_one_in_seconds_of_a_worker(
    points: Line, limits: dict[str, float], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    job = points.job(search=search_section(points, **limits))

    assert studies._budget_seconds(job) == seconds


def test_a_network_over_the_limits_of_memory_and_latency_wins_nothing(
    points: Line, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    space = {
        "train.learning_rate": {"low": 0.009, "high": 0.011},
        "network.width": {"choices": [8, 4096]},
    }
    limits = {"max_memory_bytes": 10**6, "max_latency_seconds": 10.0}

    made = tune(line.job("study", search=search_section(line, space=space, **limits)))

    wide = [trial for trial in made.facts["trials"] if trial["values"]["network.width"] == 4096]
    assert wide
    assert all(trial["constraints"]["memory_bytes"] > 0 for trial in wide)
    assert all(trial["constraints"]["latency_seconds"] < 0 for trial in wide)
    assert {trial["state"] for trial in wide} == {"PRUNED"}
    assert made.facts["best_values"]["network.width"] == 8


def test_a_study_of_which_no_trial_ends_well_is_an_error(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    search = search_section(line, trials=2, together=2, workers=1)
    job = line.job("study", network={"name": "networks.py:Nan"}, search=search)

    with pytest.raises(TrainingError, match="find the best of 2 trials: none ended with a finite"):
        tune(job)

    assert {trial.state for trial in trials_of(line)} == {TrialState.FAIL}


def test_a_damaged_study_database_is_named(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    folder = line.root / "work" / "studies"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.db").write_bytes(b"this is no database" * 100)

    with pytest.raises(CorruptError, match=r"p\.db: file is not a database.*Delete the file"):
        tune(line.job("study"))


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
