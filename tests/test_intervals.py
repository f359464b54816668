import numpy as np
import pytest

from millrace.intervals import ratio


def test_the_interval_of_a_share_is_the_textbooks() -> None:
    correct = np.repeat([1.0, 0.0], [800, 200])

    found = ratio(correct, np.ones(1000))

    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert found.value == 0.8
    assert found.low == pytest.approx(0.8 - half, abs=0.003)
    assert found.high == pytest.approx(0.8 + half, abs=0.003)
    assert found == ratio(correct, np.ones(1000))


def test_records_are_drawn_whole_so_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    of_record = rng.integers(0, 2, 50).astype(np.float64)

    clustered = ratio(of_record * 20, np.full(50, 20.0))
    apart = ratio(np.repeat(of_record, 20), np.ones(1000))

    assert clustered.value == apart.value
    assert clustered.high - clustered.low > 3 * (apart.high - apart.low)


def test_a_record_weighs_what_it_holds() -> None:
    found = ratio(np.array([10.0, 0.0]), np.array([10.0, 30.0]))

    assert found.value == 0.25
    assert found.to_dict() == {"value": 0.25, "low": 0.0, "high": 1.0}


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)

    hits = 0
    for _ in range(40):
        found = ratio((rng.random(200) < 0.7).astype(np.float64), np.ones(200))
        hits += found.low <= 0.7 <= found.high

    assert 34 <= hits <= 40
