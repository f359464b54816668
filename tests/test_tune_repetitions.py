import math

import numpy as np
import pytest

from millrace.frozen import Scalar
from millrace.search import Choices, Range, Values
from millrace.tune.account import Account, earned_steps
from millrace.tune.proposals import leaders, proposals
from millrace.tune.repetitions import Look, choose, gain_of_last_third, noise, num_leading
from millrace.tune.rung import RungJob
from tests.formula_pool import FormulaPool

SPACE: dict[str, Values] = {
    "train.learning_rate": Range(low=0.001, high=0.1),
    "network.width": Choices(choices=(16, 32)),
}


@pytest.mark.parametrize(("trials", "leading"), [(1, 1), (6, 1), (8, 2), (12, 3), (100, 3)])
def test_of_a_short_study_fewer_trials_are_trained_again(trials: int, leading: int) -> None:
    assert num_leading(trials) == leading


def test_the_noise_between_seeds_is_pooled_over_trials() -> None:
    a, b = [1.0, 1.2, 1.1], [3.0, 3.4]

    found = noise({0: a, 1: b, 2: [9.0]})

    squares = np.var(a, ddof=1) * 2 + np.var(b, ddof=1)
    assert found == pytest.approx(math.sqrt(squares / 3))
    assert math.isnan(noise({0: [1.0]}))


def test_the_best_mean_is_chosen_and_of_equal_ones_the_first() -> None:
    assert choose({3: [1.0, 3.0], 5: [1.5, 1.6], 7: [9.0, 9.0]}).trial == 5
    assert choose({3: [1.0, 2.0], 2: [2.0, 1.0]}).trial == 2
    assert choose({3: [1.0, math.inf], 5: [5.0, 5.0]}).trial == 5
    assert choose({3: [1.0, math.inf], 5: [5.0, 5.0]}).noise == 0


def test_what_the_last_third_gained_is_known_after_two_thirds() -> None:
    looks = [Look(0.1, math.inf), Look(0.3, 2.0), Look(0.5, 1.5), Look(0.6, 1.4)]

    assert gain_of_last_third(looks) == math.inf
    assert gain_of_last_third([*looks, Look(0.7, 1.4)]) == pytest.approx(0.6)
    assert gain_of_last_third([*looks, Look(1.0, 1.4)]) == pytest.approx(0.0)
    assert gain_of_last_third([Look(0.1, math.inf), Look(0.9, 1.0)]) == math.inf


def test_what_is_proposed_lies_in_the_space_and_is_tried_once() -> None:
    default: dict[str, Scalar] = {"train.learning_rate": 0.01, "network.width": 16}
    good: dict[str, Scalar] = {"train.learning_rate": 0.02, "network.width": 32}
    others: list[dict[str, Scalar]] = [
        default,
        good,
        dict(good),
        {"train.learning_rate": 0.5, "network.width": 16},
        {"train.learning_rate": 0.02, "network.width": 64},
        {"train.learning_rate": 0.02},
    ]

    assert proposals(default, others, SPACE) == [default, good]


def test_the_leaders_of_an_earlier_study_are_its_best_means() -> None:
    def row(width: int, loss: float | None, *fresh: float | None) -> dict[str, object]:
        state = "PRUNED" if loss is None else "COMPLETE"
        return {"values": {"w": width}, "loss": loss, "state": state, "repetitions": fresh}

    rows = [row(1, 1.0, 5.0), row(2, 2.0, 2.0), row(3, None), row(4, 0.5, None), row(5, 9.0)]

    assert leaders(rows) == [{"w": 2}, {"w": 1}, {"w": 5}]
    assert leaders([]) == []


@pytest.mark.parametrize(
    ("own", "default", "steps"),
    [(1.0, 1.0, 30), (1.2, 1.0, 30), (2.0, 1.0, 15), (0.1, 1.0, 30), (1e9, 1.0, 1)],
)
def test_steps_are_earned_by_what_they_cost(own: float, default: float, steps: int) -> None:
    assert earned_steps(30, own, default) == steps
    assert earned_steps(30, math.nan, default) == 30
    assert earned_steps(30, own, math.nan) == 30


def test_an_account_counts_what_is_in_hand_against_its_budget() -> None:
    account = Account(FormulaPool(step_seconds=lambda _: 0.1), budget_seconds=10.0)
    values: dict[str, Scalar] = {"train.learning_rate": 0.01}
    first, second = RungJob(0, values, 30), RungJob(1, values, 30)

    account.submit(first, 0)
    assert account.allows(10)  # nothing is known of what a step takes
    account.result(first)
    account.submit(second, 0)

    assert account.spent_seconds == pytest.approx(3.0)
    assert account.step_seconds == pytest.approx(0.1)
    assert account.allows(3.9)
    assert not account.allows(4.1)
    assert not account.allows(3.9, reserved=0.2)
