import numpy as np
import pytest

from millrace.evaluation.intervals import MOST_UNITS, paired, ratio


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


def test_a_share_without_a_single_miss_is_not_certain() -> None:
    right, wrong = (ratio(np.full(8, value), np.ones(8)) for value in (1.0, 0.0))

    assert right.value == 1.0
    assert right.high == pytest.approx(1.0)
    assert right.low == pytest.approx(0.6756, abs=1e-4)  # 8 / (8 + 1.96 ** 2)
    assert wrong.low == pytest.approx(0.0)
    assert wrong.high == pytest.approx(1 - right.low)


def test_two_that_never_differ_may_still_do_so() -> None:
    few, many = (paired(np.zeros(count), np.ones(count)) for count in (30, 3000))

    assert few.low == -few.high == pytest.approx(-0.1135, abs=1e-4)
    assert -0.002 < many.low < 0 == many.value


@pytest.mark.parametrize(("wins", "is_certain"), [(1, False), (3, False), (4, True), (30, True)])
def test_wins_without_a_loss_are_certain_only_when_there_are_enough(
    wins: int, is_certain: bool
) -> None:
    found = paired(np.repeat([1.0, 0.0], [wins, 100 - wins]), np.ones(100))

    assert (found.low >= 0) == is_certain  # as the gate asks
    lost = paired(-np.repeat([1.0, 0.0], [wins, 100 - wins]), np.ones(100))
    assert (lost.low, lost.high) == pytest.approx((-found.high, -found.low), abs=0.01)


def test_gains_that_are_no_outcomes_keep_their_bootstrap_interval() -> None:
    gains = np.random.default_rng(0).normal(1.0, 0.1, 50)

    assert paired(gains, np.ones(50)) == ratio(gains, np.ones(50))


def test_records_of_one_cluster_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    of_file = rng.normal(size=30)
    files = np.repeat(np.arange(30), 20)
    sums = of_file[files] + 0.1 * rng.normal(size=600)

    by_file = ratio(sums, np.ones(600), files)
    by_record = ratio(sums, np.ones(600))

    assert by_file.value == pytest.approx(by_record.value)
    width = 2 * 2.045 * of_file.std(ddof=1) / np.sqrt(30)  # Student's, of 29 degrees of freedom
    assert by_file.high - by_file.low == pytest.approx(width, rel=0.08)
    assert by_file.high - by_file.low > 3 * (by_record.high - by_record.low)


def test_clusters_may_have_any_numbers_in_any_order() -> None:
    rng = np.random.default_rng(2)
    sums, weights = rng.random(40), rng.uniform(1, 2, 40)
    files = rng.integers(0, 25, 40)

    found = ratio(sums, weights, files)

    assert ratio(sums, weights, files * 1000 + 7) == found
    assert paired(sums, weights, files) == found


def test_each_record_in_a_cluster_of_its_own_is_no_cluster_at_all() -> None:
    sums = np.random.default_rng(3).random(50)

    assert ratio(sums, np.ones(50), np.arange(50)) == ratio(sums, np.ones(50))


def test_a_share_without_a_miss_counts_each_cluster_once() -> None:
    files = np.repeat(np.arange(8), 100)

    found = ratio(np.ones(800), np.ones(800), files)
    divided = ratio(np.full(8, 100.0), np.full(8, 100.0))

    assert found.low == divided.low == pytest.approx(0.6756, abs=1e-4)


def test_an_interval_of_few_is_as_wide_as_students() -> None:
    values = np.random.default_rng(4).normal(size=20)

    found = ratio(values, np.ones(20))

    half = 2.093 * values.std(ddof=1) / np.sqrt(20)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)


def test_a_higher_level_makes_a_wider_interval() -> None:
    shares = np.repeat([1.0, 0.0], [80, 20])
    gains = np.repeat([1.0, 0.0, -1.0], [8, 90, 2])

    for of in (ratio, paired):
        usual, wide = (
            of(shares if of is ratio else gains, np.ones(100), level=level)
            for level in (0.95, 0.999)
        )
        assert wide.low < usual.low < usual.value == wide.value < usual.high < wide.high


def test_of_a_great_many_records_groups_are_drawn_and_the_interval_stays() -> None:
    count = 20 * MOST_UNITS
    correct = (np.random.default_rng(5).random(count) < 0.9).astype(np.float64)

    found = ratio(correct, np.ones(count))

    half = 1.96 * np.sqrt(0.9 * 0.1 / count)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)
    assert found.value == pytest.approx(correct.mean())
