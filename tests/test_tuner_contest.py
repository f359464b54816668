import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.peers.tune import NUM_RANDOM, TUNERS
from benchmarks.trainings import UNITS, Settings, Spending, Trainings
from benchmarks.tune import CASES
from benchmarks.tuner_contest import Entry, curve

BEST: Settings = {
    "train.learning_rate": 0.02,
    "train.weight_decay": 0.01,
    "train.batch": 32,
    "network.width": 8,
    "network.dropout": 0.1,
}


@pytest.fixture
def trainings(tmp_path: Path) -> Iterator[Trainings]:
    """The digits, each training cut to a step for each unit."""
    spec = CASES["digits"] | {"search": CASES["digits"]["search"] | {"steps": UNITS}}
    found = Trainings(spec, tmp_path, tmp_path / "memo.jsonl")
    yield found
    found.close()


def test_a_training_has_the_same_losses_in_one_go_in_pieces_and_from_the_memo(
    trainings: Trainings, tmp_path: Path
) -> None:
    in_pieces = [trainings.loss(BEST, 0, unit) for unit in range(1, UNITS + 1)]
    other = Trainings(trainings.job.spec.model_dump(), tmp_path / "other", tmp_path / "new.jsonl")
    again = Trainings(trainings.job.spec.model_dump(), tmp_path / "again", tmp_path / "memo.jsonl")

    last = other.loss(BEST, 0, UNITS)
    in_one_go = [other.loss(BEST, 0, unit) for unit in range(1, UNITS + 1)]

    assert in_one_go == in_pieces
    assert last == in_pieces[-1] < in_pieces[0]
    assert again.loss(BEST, 0, UNITS) == last
    assert again.cpu_seconds == 0


def test_a_training_that_was_put_aside_begins_anew_and_comes_to_the_same_loss(
    trainings: Trainings, tmp_path: Path
) -> None:
    other = Trainings(trainings.job.spec.model_dump(), tmp_path / "other", tmp_path / "new.jsonl")
    trainings.loss(BEST, 0, 3)
    trainings.close()

    assert trainings.loss(BEST, 0, UNITS) == other.loss(BEST, 0, UNITS)


def test_spending_counts_each_unit_once_and_sees_only_full_trainings(trainings: Trainings) -> None:
    spending = Spending(trainings, seed=0)
    training = spending.begin(BEST)

    training.to(1)
    after_one = spending.spent_seconds
    seen_after_one = spending.choices()
    loss = training.to(UNITS)

    assert after_one == pytest.approx(trainings.seconds(BEST, 1))
    assert spending.spent_seconds == pytest.approx(trainings.seconds(BEST, UNITS))
    assert seen_after_one == []
    assert spending.choices() == [(spending.spent_seconds, BEST)]
    assert spending.ended[0].loss == loss


def test_a_choice_that_comes_after_the_budget_is_none(trainings: Trainings) -> None:
    spending = Spending(trainings, 0, trainings.seconds(BEST, UNITS) * 1.5)

    spending.begin(trainings.default).to(UNITS)
    was_over = spending.is_over
    spending.begin(BEST).to(UNITS)

    assert not was_over
    assert spending.is_over
    assert [values for _, values in spending.choices()] in ([trainings.default], [BEST])
    assert len(spending.choices()) == 1


@pytest.mark.parametrize("name", [name for name in TUNERS if "Ray" not in name])
def test_every_tuner_begins_with_the_default_and_stops_at_its_budget(
    trainings: Trainings, name: str
) -> None:
    price = trainings.seconds(trainings.default, UNITS)
    spending = Spending(trainings, 0, 4 * price)

    TUNERS[name](spending, 0)

    assert spending.ended[0].values == trainings.default
    if name == "random search":
        assert len(spending.ended) == spending.num_begun == NUM_RANDOM
    else:
        assert spending.is_over
        assert spending.num_begun > 1


def test_quality_is_that_of_held_out_samples_and_fresh_seeds(trainings: Trainings) -> None:
    at_best, at_default = trainings.quality(BEST), trainings.quality(trainings.default)

    assert at_best < at_default
    assert at_best != trainings.loss(BEST, 0, UNITS)
    assert curve(trainings, [(1.0, trainings.default), (3.0, BEST), (5.0, BEST)], 4.0) == [
        (0.25, at_default),
        (0.75, at_best),
    ]


def test_shares_are_those_at_which_the_target_is_first_reached() -> None:
    entry = Entry([[(0.1, 3.0), (0.5, 1.0), (0.7, 2.0)], [(0.2, 3.0)], [(0.3, 0.5)]])

    assert entry.shares(2.0) == [0.5, 1.0, 0.3]
    assert entry.num_reached(2.0) == 2
    assert entry.finals == [2.0, 3.0, 0.5]


def test_a_training_that_diverges_is_infinitely_bad(trainings: Trainings) -> None:
    wild: Settings = {**BEST, "train.learning_rate": 1e30}

    assert trainings.loss(wild, 0, UNITS) == math.inf
    assert trainings.quality(wild) == math.inf
