import math

import pytest

from millrace.train.budget import FIRST_COST_SECONDS, Budget, Pace, interval_seconds


def test_the_interval_is_youngs() -> None:
    # Young's own example of 1974 in our units: C = 2 s, M = 1 h.
    assert interval_seconds(2.0, 1.0) == pytest.approx(math.sqrt(2 * 2 * 3600))


@pytest.mark.parametrize("mtbf_hours", [0.5, 24.0, 2000.0])
def test_no_other_interval_loses_less(mtbf_hours: float) -> None:
    cost, mtbf = 3.0, mtbf_hours * 3600
    best = interval_seconds(cost, mtbf_hours)

    def lost(interval: float) -> float:
        return cost / interval + interval / (2 * mtbf)

    assert lost(best) < min(lost(best * 0.9), lost(best * 1.1))


def test_seconds_become_steps_at_the_measured_speed() -> None:
    auto = Pace("auto", 24.0)

    assert auto.interval(0.5, 0.1) == round(interval_seconds(0.5, 24.0) / 0.1)
    assert auto.interval(math.nan, 0.1) == round(interval_seconds(FIRST_COST_SECONDS, 24.0) / 0.1)
    assert auto.interval(0.5, 1e9) == 1
    assert Pace(50, 24.0).interval(0.5, 0.1) == 50


def test_a_number_is_kept_at_its_multiples_and_auto_from_the_last_one() -> None:
    fixed, auto = Pace(50, 24.0), Pace("auto", 24.0)

    assert [step for step in range(48, 53) if fixed.is_due(step, 7, 50)] == [50, 51, 52]
    assert not fixed.is_due(51, 50, 50)
    assert [step for step in range(55, 60) if auto.is_due(step, 7, 50)] == [57, 58, 59]
    assert fixed.steps_left(45, 50, 100) == 5
    assert fixed.steps_left(50, 50, 100) == 50
    assert auto.steps_left(45, 50, 100) == 100
    assert auto.steps_left(45, 50, 0) == 1


def test_a_budget_is_spent_when_either_limit_is_reached() -> None:
    budget = Budget(max_usd=2.0, max_hours=3.0, usd_per_hour=1.0)

    assert not budget.is_spent(3600.0)
    assert budget.is_spent(2 * 3600.0)
    assert Budget(math.inf, 3.0, 1.0).is_spent(3 * 3600.0)
    assert not Budget(math.inf, math.inf, 1.0).is_spent(1e12)


def test_a_spent_budget_says_how_much_and_how_to_go_on() -> None:
    error = Budget(0.5, math.inf, 2.0).error("p", 40, 100, 900.0)

    assert error.asked == "train p to step 100 within train.max_usd 0.5"
    assert error.found == "0.5 USD and 0.25 hours are spent at step 40"
    assert "Raise the limit and run it again: it goes on from step 40" in error.fix
