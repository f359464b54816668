import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.tune.halving import Correlation, correlation, leading, rungs

losses = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@pytest.mark.parametrize(("steps", "expected"), [(9, (1, 3, 9)), (90, (10, 30, 90))])
def test_rungs_are_a_ninth_a_third_and_all(steps: int, expected: tuple[int, ...]) -> None:
    assert rungs(steps) == expected


@given(losses, st.integers(0, 5))
def test_the_best_third_leads_one_at_least_and_earlier_ones_before_their_equals(
    losses: list[float], spare: int
) -> None:
    found = leading(dict(enumerate(losses)), spare)

    number = min(len(losses), max(1, len(losses) // 3) + spare)
    assert found == sorted(range(len(losses)), key=losses.__getitem__)[:number]


def test_equal_orders_correlate_fully_and_opposite_ones_not() -> None:
    first = {trial: float(trial) for trial in range(6)}

    assert correlation(first, first).value == pytest.approx(1)
    assert correlation(first, {t: -loss for t, loss in first.items()}).value == pytest.approx(-1)
    assert correlation(first, first).num_trials == 6


def test_a_correlation_of_nothing_is_not_known() -> None:
    assert math.isnan(correlation({}, {}).value)
    assert math.isnan(correlation({0: 1.0, 1: 2.0}, {0: 1.0}).value)
    assert math.isnan(correlation({0: 1.0, 1: 1.0}, {0: 1.0, 1: 2.0}).value)
    assert not Correlation(math.nan, 50).is_low


def test_few_trials_prove_no_first_rung_wrong() -> None:
    assert not Correlation(-1.0, 5).is_low
    assert not Correlation(0.5, 6).is_low
    assert Correlation(0.0, 6).is_low
    assert Correlation(0.5, 40).is_low
    assert not Correlation(0.8, 100).is_low


def test_the_correlation_of_the_best_third_tells_that_of_all() -> None:
    rng = np.random.default_rng(0)
    told, raw, whole = [], [], []
    for _ in range(200):
        first = rng.normal(size=90)
        last = first + 0.7 * rng.normal(size=90)
        best = np.argsort(first)[:30]
        ended = {int(trial): float(last[trial]) for trial in best}
        everyone = dict(enumerate(first.tolist()))
        told.append(correlation(everyone, ended).value)
        raw.append(correlation({t: everyone[t] for t in ended}, ended).value)
        whole.append(correlation(everyone, dict(enumerate(last.tolist()))).value)

    assert np.mean(whole) > 0.75
    assert np.mean(raw) < np.mean(whole) - 0.2
    assert np.mean(told) == pytest.approx(np.mean(whole), abs=0.07)
