import pytest

from millrace.plan.quality import price_quality, slope

FACTS = {
    "metric": "accuracy",
    "higher_is_better": True,
    "estimate": {"value": 0.9, "low": 0.88, "high": 0.92},
    "baselines": {"majority": {"value": 0.4}, "logistic-regression": {"value": 0.8}},
}


def test_each_point_over_the_best_baseline_is_paid_by_the_whole_run() -> None:
    curve = [{"step": step, "accuracy": 0.5 + step / 1000} for step in (100, 200, 300, 400)]

    found = price_quality(FACTS, curve, run_usd=5.0, usd_per_step=0.01)

    assert found is not None
    assert found.gained == pytest.approx(10)
    assert found.usd_per_point == pytest.approx(0.5)
    # A thousandth a step: ten steps a point.
    assert found.next_point_usd == pytest.approx(0.1)


def test_where_less_is_better_a_point_is_a_hundredth_of_the_baseline() -> None:
    facts = FACTS | {
        "metric": "bits_per_byte",
        "higher_is_better": False,
        "estimate": {"value": 1.0},
        "baselines": {"zstd-19": {"value": 2.0}},
    }
    curve = [{"step": step, "bits_per_byte": 1.5 - step / 1000} for step in (100, 200, 300)]

    found = price_quality(facts, curve, run_usd=5.0, usd_per_step=0.01)

    assert found is not None
    assert found.point == 0.02
    assert found.gained == pytest.approx(50)
    assert found.next_point_usd == pytest.approx(0.2)


def test_what_no_longer_rises_has_no_price_for_the_next_point() -> None:
    curve = [{"step": step, "accuracy": 0.9} for step in (100, 200, 300)]

    found = price_quality(FACTS, curve, 5.0, 0.01)

    assert found is not None
    assert found.next_point_usd == 0


def test_a_model_below_its_baseline_has_no_price_for_a_point() -> None:
    facts = FACTS | {"estimate": {"value": 0.7}}

    found = price_quality(facts, [], 5.0, 0.01)

    assert found is not None
    assert found.gained < 0
    assert found.usd_per_point == 0


def test_without_a_baseline_there_is_nothing_to_pay_for() -> None:
    assert price_quality(FACTS | {"baselines": {}}, [], 5.0, 0.01) is None


def test_the_slope_is_of_the_last_half_and_of_this_metric_alone() -> None:
    curve = [
        {"step": 100.0, "accuracy": 0.0},
        {"step": 400.0, "train_loss": 9.0},
        {"step": 500.0, "accuracy": 0.5},
        {"step": 1000.0, "accuracy": 0.6},
    ]

    assert slope(curve, "accuracy") == pytest.approx(0.1 / 500)
    assert slope(curve[:1], "accuracy") == 0
    assert slope([], "accuracy") == 0
