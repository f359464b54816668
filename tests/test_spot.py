import random

import pytest

from millrace.plan.spot import Failures, break_even_usd_per_hour

SPOT = Failures(checkpoint_seconds=5.0, restart_seconds=60.0, mtbf_seconds=4 * 3600.0)


def simulated(failures: Failures, useful_seconds: float, seed: int) -> float:
    """Seconds of one training whose machine fails at random, checkpointed at Young's interval."""
    draw = random.Random(seed)  # noqa: S311  a fixed seed, not a secret
    now = done = 0.0
    until = draw.expovariate(1 / failures.mtbf_seconds)
    while done < useful_seconds:
        part = min(failures.interval_seconds, useful_seconds - done)
        cost = part + (failures.checkpoint_seconds if done + part < useful_seconds else 0.0)
        if now + cost <= until:
            now, done = now + cost, done + part
        else:  # the part is lost; while it restarts it does not fail again
            now = until + failures.restart_seconds
            until = now + draw.expovariate(1 / failures.mtbf_seconds)
    return now


def test_expected_seconds_are_the_mean_of_simulated_trainings() -> None:
    useful = 40 * 3600.0
    times = [simulated(SPOT, useful, seed) for seed in range(400)]

    mean = sum(times) / len(times)

    assert SPOT.expected_seconds(useful) == pytest.approx(mean, rel=0.02)
    assert useful * SPOT.overhead == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_no_other_interval_has_less_overhead(factor: float) -> None:
    tau = factor * SPOT.interval_seconds
    cost, mtbf = SPOT.checkpoint_seconds, SPOT.mtbf_seconds

    other = 1 + cost / tau + tau / (2 * mtbf) + SPOT.restart_seconds / mtbf

    assert SPOT.overhead < other


def test_a_training_shorter_than_an_interval_saves_nothing_and_loses_half_of_itself() -> None:
    useful = SPOT.interval_seconds / 10

    lost = SPOT.expected_seconds(useful) - useful

    assert lost == pytest.approx(SPOT.restarts(useful) * (60.0 + useful / 2))


def test_at_the_break_even_price_spot_costs_the_same() -> None:
    price = break_even_usd_per_hour(3.0, seconds=3600.0, spot_seconds=4000.0)

    assert price * 4000 == pytest.approx(3.0 * 3600)
