import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.gate import MIN_RECORDS, Outcome, Rule, Verdict, decide
from millrace.spec import GateSpec

finite = st.floats(-10, 10)
SEVERITY = [Outcome.PASS, Outcome.CANNOT_TELL, Outcome.FAIL]


def evaluation(
    low: float,
    high: float,
    gain: tuple[float, float] = (1.0, 2.0),
    *,
    higher: bool = True,
    num_records: int = MIN_RECORDS,
) -> dict[str, Any]:
    return {
        "metric": "accuracy" if higher else "bits_per_byte",
        "higher_is_better": higher,
        "num_records": num_records,
        "estimate": {"value": (low + high) / 2, "low": low, "high": high},
        "baselines": {
            ("majority" if higher else "zstd-19"): {
                "value": 0.0,
                "gain": {"value": sum(gain) / 2, "low": gain[0], "high": gain[1]},
            }
        },
    }


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
    verdict = decide(gate, evaluation(0.9, 1.0, num_records=MIN_RECORDS - 1))

    assert {rule.outcome for rule in verdict.rules} == {Outcome.CANNOT_TELL}
    assert "only 19 test records, at least 20 are needed to decide" in str(verdict)
    assert {rule.outcome for rule in decide(gate, evaluation(0.9, 1.0)).rules} <= {
        Outcome.PASS,
        Outcome.FAIL,
    }
