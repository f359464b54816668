import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.tune.rates import (
    LEAST_RATES,
    MOST_FIRST_RATES,
    Parabola,
    Trained,
    extrapolate,
    first_rates,
    next_rate,
    parabola,
)

LOW, HIGH = 2.0**-11, 2.0**-3


def bowl(width: int, *, best: float, noise: float = 0.0, seed: int = 0) -> Parabola:
    """Losses of 2 and a tenth of the squared octaves from `best`, at five rates."""
    octaves = np.round(best) + np.array([-2.0, -1.0, -0.5, 0.0, 1.0])
    wobble = noise * np.random.default_rng(seed).standard_normal(5)
    return Parabola(width, octaves, 2 + 0.1 * (octaves - best) ** 2 + wobble)


def swept(loss_of: Callable[[float], float], rates: list[float], width: int = 16) -> list[Trained]:
    """Trainings at these rates and at those that are asked for after them."""
    trained = [Trained(width, rate, loss_of(math.log2(rate))) for rate in rates]
    while (rate := next_rate(trained, LOW, HIGH)) is not None:
        assert len(trained) < 20, "it comes to an end"
        trained.append(Trained(width, rate, loss_of(math.log2(rate))))
    return trained


@given(st.floats(-10.9, -3.1), st.floats(0.01, 1.0))
def test_a_parabola_is_found_wherever_its_lowest_point_lies(best: float, bend: float) -> None:
    trained = swept(lambda x: 1 + bend * (x - best) ** 2, first_rates(LOW, HIGH))

    found = parabola(trained)

    assert found is not None
    assert found.best_octave == pytest.approx(best, abs=1e-6)
    assert found.best_loss == pytest.approx(1, abs=1e-6)
    assert found.curvature == pytest.approx(bend, rel=1e-6)
    assert all(LOW <= one.rate <= HIGH * (1 + 1e-9) for one in trained)


@given(st.floats(-10.0, -4.0))
def test_rates_at_which_trainings_diverge_do_not_hide_the_best_one(best: float) -> None:
    def loss_of(octave: float) -> float:
        return math.inf if octave > best + 0.8 else 1 + 0.1 * (octave - best) ** 2

    found = parabola(swept(loss_of, first_rates(LOW, HIGH)))

    assert found is not None
    assert found.best_octave == pytest.approx(best, abs=0.5)
    assert found.best_octave <= best + 0.8


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_best_rate_beyond_the_range_is_not_followed_there(slope: float) -> None:
    found = parabola(swept(lambda x: 5 + slope * x, first_rates(LOW, HIGH)))

    assert found is not None
    assert 2**found.best_octave == pytest.approx(LOW if slope > 0 else HIGH)


def test_a_width_at_which_nothing_trains_has_no_parabola() -> None:
    trained = swept(lambda _: math.inf, first_rates(LOW, HIGH))

    assert len(trained) == MOST_FIRST_RATES
    assert parabola(trained) is None
    assert parabola([Trained(16, 0.01, 1.0)] * LEAST_RATES) is None


@pytest.mark.parametrize(
    ("low", "high", "around", "octaves"),
    [
        (2.0**-8, 2.0**-4, None, [-8, -7, -6, -5, -4]),
        (2.0**-20, 2.0**-5, None, [-20, -17, -14, -11, -8, -5]),
        (0.01, 0.011, None, [math.log2(0.01), math.log2(0.011)]),
        (LOW, HIGH, 2.0**-6, [-7, -6, -5]),
        (LOW, HIGH, 2.0**-3, [-4, -3]),
    ],
)
def test_first_rates_cover_the_range_or_lie_about_a_likely_one(
    low: float, high: float, around: float | None, octaves: list[float]
) -> None:
    assert np.log2(first_rates(low, high, around)) == pytest.approx(octaves)


@given(st.floats(-1.0, 0.0), st.floats(-7.0, -5.0))
def test_a_line_through_exact_lowest_points_leads_to_the_exact_rate(
    slope: float, start: float
) -> None:
    widths = (16, 32, 64)
    parabolas = [bowl(w, best=start + slope * math.log2(w / 16)) for w in widths]

    found = extrapolate(parabolas, 256, 2.0**-30, 1.0)

    assert math.log2(found.rate) == pytest.approx(start + 4 * slope, abs=1e-6)
    assert found.low == pytest.approx(found.rate) == found.high
    assert found.slope == pytest.approx(slope, abs=1e-6)
    assert found.loss == pytest.approx(2)


@pytest.mark.parametrize(("slope", "taken"), [(0.7, 0.0), (-2.5, -1.0)])
def test_a_slope_that_theory_does_not_allow_is_cut(slope: float, taken: float) -> None:
    parabolas = [bowl(w, best=-6 + slope * math.log2(w / 16)) for w in (16, 32)]

    found = extrapolate(parabolas, 64, 2.0**-30, 1.0)

    assert found.slope == taken
    assert math.log2(found.rate) == pytest.approx(-6 + slope / 2 + 1.5 * taken)


def test_the_interval_holds_the_rate_about_as_often_as_it_says() -> None:
    held = []
    for seed in range(60):
        parabolas = [
            bowl(w, best=-6 - 0.5 * math.log2(w / 16), noise=0.01, seed=10 * seed + i)
            for i, w in enumerate((16, 32, 64))
        ]
        found = extrapolate(parabolas, 256, 2.0**-30, 1.0, seed=seed)
        held.append(found.low <= 2**-8.0 <= found.high)
        assert found.low <= found.rate <= found.high

    assert 0.75 <= sum(held) / len(held) <= 1.0


def test_more_noise_makes_a_wider_interval_and_the_range_holds_it() -> None:
    def interval(noise: float) -> tuple[float, float]:
        parabolas = [bowl(w, best=-6, noise=noise, seed=w) for w in (16, 32)]
        found = extrapolate(parabolas, 128, 2.0**-9, 2.0**-4)
        return found.low, found.high

    calm, rough = interval(0.002), interval(0.5)

    assert calm[1] / calm[0] < rough[1] / rough[0]
    assert rough[0] >= 2.0**-9
    assert rough[1] <= 2.0**-4
