import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.evaluation.gate import MIN_DRAWN, Outcome, Rule, Verdict, decide, tolerance
from millrace.spec import GateSpec

finite = st.floats(-10, 10)
SEVERITY = [Outcome.PASS, Outcome.CANNOT_TELL, Outcome.FAIL]


def evaluation(
    low: float,
    high: float,
    gain: tuple[float, float] = (1.0, 2.0),
    *,
    higher: bool = True,
    num_drawn: int = MIN_DRAWN,
    **more: Any,
) -> dict[str, Any]:
    return {
        "metric": "accuracy" if higher else "bits_per_byte",
        "higher_is_better": higher,
        "num_records": num_drawn,
        "num_drawn": num_drawn,
        "drawn": "records",
        "release": {"standing": "none"},
        "slices": {},
        "estimate": {"value": (low + high) / 2, "low": low, "high": high},
        "baselines": {
            ("majority" if higher else "zstd-19"): {
                "value": 0.0,
                "gain": {"value": sum(gain) / 2, "low": gain[0], "high": gain[1]},
            }
        },
    } | more


def interval(low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"value": (low + high) / 2, "low": low, "high": high, **more}


def released(low: float, high: float, value: float = 0.5) -> dict[str, Any]:
    """A release of this metric, and the gain over it."""
    return {"standing": "compared", **interval(value, value), "gain": interval(low, high)}


def part(
    name: str, low: float, high: float, wider: float = 0.0, num_drawn: int = MIN_DRAWN
) -> dict[str, Any]:
    """A slice whose interval, and gain, go from low to high; the simultaneous ones are wider."""
    found = interval(low, high, simultaneous=interval(low - wider, high + wider))
    return {"name": name, "num_records": num_drawn, "num_drawn": num_drawn, **found, "gain": found}


def outcome_of(verdict: Verdict, words: str) -> Outcome:
    (found,) = [rule.outcome for rule in verdict.rules if words in rule.asked]
    return found


@given(finite, finite, finite, st.booleans())
def test_the_verdict_follows_from_where_the_bar_lies(
    one: float, other: float, bar: float, higher: bool
) -> None:
    low, high = sorted((one, other))

    outcome = decide(GateSpec(bar=bar), evaluation(low, high, higher=higher)).outcome

    reached, missed = (low >= bar, high < bar) if higher else (high <= bar, low > bar)
    assert not (reached and missed)
    expected = {(True, False): Outcome.PASS, (False, True): Outcome.FAIL}
    assert outcome is expected.get((reached, missed), Outcome.CANNOT_TELL)


@given(finite, finite, finite, st.floats(0, 5))
def test_a_better_gain_is_never_judged_worse(
    one: float, other: float, bar: float, more: float
) -> None:
    low, high = sorted((one, other))

    before = decide(GateSpec(bar=bar), evaluation(low, high, (low, high)))
    after = decide(
        GateSpec(bar=bar), evaluation(low + more, high + more, (low + more, high + more))
    )

    assert SEVERITY.index(after.outcome) <= SEVERITY.index(before.outcome)


@given(finite, finite, finite, st.floats(0, 5))
def test_a_wider_interval_never_turns_doubt_into_certainty(
    one: float, other: float, bar: float, wider: float
) -> None:
    low, high = sorted((one, other))

    before = decide(GateSpec(bar=bar), evaluation(low, high)).outcome
    after = decide(GateSpec(bar=bar), evaluation(low - wider, high + wider)).outcome

    assert after in (before, Outcome.CANNOT_TELL)


@given(st.lists(st.sampled_from(SEVERITY), min_size=1))
def test_the_worst_rule_decides(outcomes: list[Outcome]) -> None:
    verdict = Verdict(tuple(Rule("asked", outcome, "found") for outcome in outcomes))

    assert verdict.outcome is max(outcomes, key=SEVERITY.index)


@pytest.mark.parametrize(
    ("gain", "outcome"),
    [((0.0, 1.0), "pass"), ((-2.0, -0.1), "fail"), ((-0.1, 0.2), "cannot tell")],
)
def test_without_a_bar_the_tasks_own_baseline_must_be_beaten(
    gain: tuple[float, float], outcome: str
) -> None:
    verdict = decide(GateSpec(), evaluation(0.5, 0.6, gain))

    assert verdict.outcome == outcome
    assert str(verdict).startswith(f"{outcome}: beats majority (0.0000): {outcome} (gain")


def test_an_unknown_baseline_fails_and_the_known_ones_are_named() -> None:
    verdict = decide(GateSpec(beats=("xgboost",)), evaluation(0.5, 0.6))

    assert verdict.outcome is Outcome.FAIL
    assert "beats xgboost: fail (no such baseline; known: majority)" in str(verdict)


def test_an_interval_that_is_not_a_number_opens_nothing() -> None:
    verdict = decide(GateSpec(bar=0.5), evaluation(math.nan, math.nan))

    assert verdict.outcome is Outcome.CANNOT_TELL


@pytest.mark.parametrize("gate", [GateSpec(), GateSpec(bar=0.5), GateSpec(beats=("xgboost",))])
def test_with_too_few_test_records_no_rule_can_tell(gate: GateSpec) -> None:
    verdict = decide(gate, evaluation(0.9, 1.0, num_drawn=MIN_DRAWN - 1))

    assert {rule.outcome for rule in verdict.rules} == {Outcome.CANNOT_TELL, Outcome.NO_BASELINE}
    assert "only 19 test records, at least 20 are needed to decide" in str(verdict)
    assert {rule.outcome for rule in decide(gate, evaluation(0.9, 1.0)).rules} <= {
        Outcome.PASS,
        Outcome.FAIL,
        Outcome.NO_BASELINE,
    }


@pytest.mark.parametrize(
    ("release", "told"),
    [
        ({"standing": "none"}, "no baseline (no release before this one)"),
        (
            {"standing": "not comparable", "reason": "its classes differ: dog"},
            "no baseline (not comparable: its classes differ: dog)",
        ),
        ({"standing": "same"}, "pass (same weights)"),
    ],
)
def test_where_no_release_is_compared_the_verdict_says_why(
    release: dict[str, Any], told: str
) -> None:
    verdict = decide(GateSpec(), evaluation(0.5, 0.6, release=release))

    assert verdict.outcome is Outcome.PASS
    assert f"no worse than the release: {told}" in str(verdict)


def test_what_nothing_is_compared_with_does_not_open_the_gate() -> None:
    verdict = Verdict((Rule("asked", Outcome.NO_BASELINE, "found"),))

    assert verdict.outcome is Outcome.CANNOT_TELL


@given(finite, finite, st.floats(0, 5))
def test_only_a_gain_that_is_wholly_above_the_tolerance_passes(
    one: float, other: float, tolerated: float
) -> None:
    low, high = sorted((one, other))

    verdict = decide(
        GateSpec(tolerance=tolerated), evaluation(0.5, 0.6, release=released(low, high))
    )

    passed, failed = low + tolerated >= 0, high + tolerated < 0
    expected = {(True, False): Outcome.PASS, (False, True): Outcome.FAIL}
    found = outcome_of(verdict, "no worse than the release")
    assert found is expected.get((passed, failed), Outcome.CANNOT_TELL)


def test_a_hundredth_of_the_releases_metric_is_tolerated_unless_it_is_said_otherwise() -> None:
    slightly_worse = evaluation(0.7, 0.9, release=released(-0.007, 0.001, value=0.8))

    assert decide(GateSpec(), slightly_worse).outcome is Outcome.PASS
    assert decide(GateSpec(tolerance=0.005), slightly_worse).outcome is Outcome.CANNOT_TELL
    assert decide(GateSpec(tolerance=0), slightly_worse).outcome is Outcome.CANNOT_TELL
    assert tolerance(GateSpec(), 0.8) == pytest.approx(0.008)
    assert tolerance(GateSpec(tolerance=0), 0.8) == 0
    assert "no worse than the release (0.8000) by more than 0.008: pass (gain -0.0030 [" in str(
        decide(GateSpec(), slightly_worse)
    )


@pytest.mark.parametrize(
    ("worst", "outcome"),
    [
        (part("dog", 0.8, 0.9), "pass"),
        (part("dog", 0.7, 0.9), "cannot tell"),
        (part("dog", 0.6, 0.7, wider=0.02), "fail"),
        (part("dog", 0.6, 0.7, wider=0.2), "cannot tell"),  # one of many is low by chance
        (part("dog", 0.9, 1.0, num_drawn=MIN_DRAWN - 1), "cannot tell"),
        (part("dog", 0.1, 0.2, num_drawn=MIN_DRAWN - 1), "cannot tell"),
    ],
)
@pytest.mark.parametrize("higher", [True, False])
def test_every_slice_must_reach_its_bar(worst: dict[str, Any], outcome: str, higher: bool) -> None:
    parts = [part("cat", 0.85, 0.95, wider=0.5), worst]
    bar = 0.75
    if not higher:
        parts, bar = [mirrored(each) for each in parts], -bar

    verdict = decide(
        GateSpec(slice_bars={"class": bar}),
        evaluation(0.85, 0.95, higher=higher, slices={"class": parts}),
    )

    assert verdict.outcome == outcome
    if outcome != "pass":
        assert f"in every slice by class: {outcome} (dog: " in str(verdict)


def mirrored(part: dict[str, Any]) -> dict[str, Any]:
    """The same slice where less is better."""
    inner = part["simultaneous"]
    return part | interval(
        -part["high"], -part["low"], simultaneous=interval(-inner["high"], -inner["low"])
    )


def test_the_slices_to_blame_are_named_up_to_five() -> None:
    parts = [part(str(number), 0.1, 0.2) for number in range(8)]

    verdict = decide(
        GateSpec(slice_bars={"class": 0.75}), evaluation(0.85, 0.95, slices={"class": parts})
    )

    assert "0: 0.1500 [0.1000, 0.2000], of 20 records, 1: " in str(verdict)
    assert "4: 0.1500 [0.1000, 0.2000], of 20 records, 3 more)" in str(verdict)


def test_a_bar_for_slices_that_were_not_evaluated_opens_nothing() -> None:
    verdict = decide(GateSpec(slice_bars={"class": 0.75}), evaluation(0.85, 0.95))

    assert verdict.outcome is Outcome.CANNOT_TELL
    assert "make it again" in str(verdict)


@pytest.mark.parametrize(
    ("worst", "outcome"),
    [
        (part("dog", -0.4, -0.3, wider=0.1), "fail"),
        (part("dog", -0.4, -0.3, wider=0.4), "pass"),  # not shown to be worse
        (part("dog", -0.4, 0.3), "pass"),
        (part("dog", -0.4, -0.3, num_drawn=MIN_DRAWN - 1), "pass"),
    ],
)
def test_no_slice_may_be_shown_to_be_worse_than_the_release(
    worst: dict[str, Any], outcome: str
) -> None:
    slices = {"class": [part("cat", 0.0, 0.1), worst]}

    verdict = decide(
        GateSpec(slices=("class",)),
        evaluation(0.85, 0.95, release=released(0, 0.1), slices=slices),
    )

    assert outcome_of(verdict, "no slice by class") == outcome
    first = decide(GateSpec(slices=("class",)), evaluation(0.85, 0.95, slices=slices))
    assert not [rule for rule in first.rules if "no slice" in rule.asked]
