import math
import random

import pytest

from millrace.plan.spread import ENOUGH_RUNS, NOTHING, Interval, half_width, spread

ROUNDS = 2000


def coverage(count: int, sigma: float) -> float:
    """How often the interval by so many errors holds the next one."""
    draw = random.Random(count)  # noqa: S311  a fixed seed, not a secret
    held = 0
    for _ in range(ROUNDS):
        errors = [draw.gauss(0, sigma) for _ in range(count)]
        held += abs(draw.gauss(0, sigma)) <= half_width(errors)
    return held / ROUNDS


def test_without_runs_the_interval_says_how_little_is_known() -> None:
    found = spread(10.0, [])

    assert found.low < 10.0 / 1.5
    assert found.high > 15.0


@pytest.mark.parametrize("count", [ENOUGH_RUNS, 20, 40])
def test_nine_in_ten_intervals_hold_whatever_the_size_of_the_errors(count: int) -> None:
    for sigma in (0.01, 0.1, 1.0):
        # Three standard deviations of the share of 2000 rounds are 0.02.
        assert 0.88 <= coverage(count, sigma) <= 0.96 + 0.5 / count


def test_few_runs_with_small_errors_narrow_it_and_with_large_ones_widen_it() -> None:
    before = half_width([])

    assert half_width([0.01] * 5) < before
    assert half_width([1.0] * 5) > before


def test_an_interval_is_as_far_above_as_below_in_ratios() -> None:
    found = spread(8.0, [0.1, -0.2, 0.05])

    assert math.log(found.high / 8) == pytest.approx(math.log(8 / found.low))
    assert found.holds(8.0)
    assert not found.holds(found.high * 1.01)


def test_sums_and_multiples_keep_their_ends_in_order() -> None:
    one = Interval(value=2.0, low=1.0, high=3.0)

    assert one.plus(one.times(2)) == Interval(value=6.0, low=3.0, high=9.0)
    assert one.plus(NOTHING) == one
