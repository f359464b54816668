"""Candidates whose true quality is known: how often the gate errs, and how often it cannot tell."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from millrace.evaluation.gate import Outcome, decide
from millrace.evaluation.quality import Measured, judge_slices
from millrace.evaluation.slices import Slices
from millrace.gates import GateSpec, Slicing

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, float], tuple[Measured, Floats]]

COMPARISONS = 600
ERROR = 0.025
"""Of each kind, that a rule is allowed: half of what lies outside of an interval of 95 %."""
TOLERANCE = 0.05
RELEASE = 0.7


def facts_of(measured: Measured, released: Floats, slices: Slices | None = None) -> dict[str, Any]:
    """An evaluation's facts, made as the evaluation makes them."""
    slicings = {} if slices is None else {"class": slices}
    return {
        "metric": "accuracy",
        "higher_is_better": measured.higher_is_better,
        "num_records": len(measured.metric),
        "num_drawn": measured.num_drawn,
        "drawn": "records" if measured.clusters is None else "source files",
        "baselines": {"majority": {"value": 0.0, "gain": {"value": 1.0, "low": 1.0, "high": 1.0}}},
        "release": {
            "standing": "compared",
            "value": float(released.sum() / measured.weight.sum()),
            "gain": measured.gain(released).to_dict(),
        },
        "slices": judge_slices(slicings, measured, released),
    }


def numbers(rng: np.random.Generator, gain: float) -> tuple[Measured, Floats]:
    """A metric of any numbers on 60 records, as heavy-tailed as lengths of texts."""
    weights = rng.lognormal(0.0, 0.7, 60)
    released = weights * rng.gamma(4.0, 0.25, 60)
    ours = released + weights * (gain + 0.2 * rng.standard_t(6, 60))
    return Measured(ours, weights, higher_is_better=True), released


def answers(rng: np.random.Generator, gain: float) -> tuple[Measured, Floats]:
    """Right and wrong answers to 300 records, most of them alike."""
    released = rng.random(300) < RELEASE
    lost, won = 0.1 - gain / 2, 0.1 + gain / 2
    drawn = rng.random(300)
    # Of all records a share `lost` turns wrong and a share `won` turns right.
    ours = np.where(released, drawn >= lost / RELEASE, drawn < won / (1 - RELEASE))
    return Measured(ours.astype(float), np.ones(300), higher_is_better=True), released.astype(float)


def files(rng: np.random.Generator, gain: float) -> tuple[Measured, Floats]:
    """400 records of 40 source files that differ in how much the candidate gains on them."""
    file = np.repeat(np.arange(40), 10)
    released = rng.normal(size=400)
    ours = released + gain + 0.3 * rng.normal(size=40)[file] + 0.3 * rng.normal(size=400)
    return Measured(ours, np.ones(400), higher_is_better=True, clusters=file), released


def verdicts(draw: Draw, gain: float) -> Counter[Outcome]:
    """How the comparison with the release comes out, over many candidates of the same true gain."""
    rng = np.random.default_rng(0)
    gate = GateSpec(tolerance=TOLERANCE)
    found = (decide(gate, facts_of(*draw(rng, gain))) for _ in range(COMPARISONS))
    return Counter(verdict.outcome for verdict in found)


def most(share: float) -> float:
    """Cases beyond which their true share is above this one, but for one test in a thousand."""
    return COMPARISONS * share + 3.1 * math.sqrt(COMPARISONS * share * (1 - share))


@pytest.mark.parametrize("draw", [numbers, answers, files])
def test_a_candidate_at_the_limit_is_passed_and_failed_as_often_as_the_level_says(
    draw: Draw,
) -> None:
    found = verdicts(draw, -TOLERANCE)

    assert 1 <= found[Outcome.PASS] <= most(ERROR)
    assert 1 <= found[Outcome.FAIL] <= most(ERROR)
    assert sum(found.values()) == COMPARISONS


def test_records_of_one_file_drawn_apart_would_err_far_more_often() -> None:
    def apart(rng: np.random.Generator, gain: float) -> tuple[Measured, Floats]:
        measured, released = files(rng, gain)
        return Measured(measured.metric, measured.weight, higher_is_better=True), released

    found = verdicts(apart, -TOLERANCE)

    assert found[Outcome.PASS] > 3 * COMPARISONS * ERROR


@pytest.mark.parametrize(
    ("gain", "outcome"), [(0.0, Outcome.PASS), (-0.3, Outcome.FAIL), (-0.04, Outcome.CANNOT_TELL)]
)
def test_what_the_sample_suffices_for_is_decided_and_the_rest_is_not(
    gain: float, outcome: Outcome
) -> None:
    def plenty(rng: np.random.Generator, gain: float) -> tuple[Measured, Floats]:
        released = rng.normal(size=100)
        return Measured(released + gain + 0.1 * rng.normal(size=100), np.ones(100), True), released

    assert verdicts(plenty, gain)[outcome] > 0.8 * COMPARISONS


@pytest.mark.parametrize("gain", [0.0, -2 * TOLERANCE])
def test_of_too_small_a_sample_the_gate_cannot_tell(gain: float) -> None:
    def few(rng: np.random.Generator, gain: float) -> tuple[Measured, Floats]:
        released = rng.normal(size=25)
        return Measured(released + gain + rng.normal(size=25), np.ones(25), True), released

    assert verdicts(few, gain)[Outcome.CANNOT_TELL] > 0.9 * COMPARISONS


NUM_SLICES = 5
IN_SLICE = 40


def sliced(rng: np.random.Generator, qualities: Floats) -> dict[str, Any]:
    """The facts of answers to records in slices, each of a known share of right ones.

    The release answers as often rightly in each slice, and independently.
    """
    number = np.repeat(np.arange(NUM_SLICES), IN_SLICE)
    ours, theirs = (
        (rng.random(len(number)) < qualities[number]).astype(np.float64) for _ in range(2)
    )
    slices = Slices([str(i) for i in range(NUM_SLICES)], number)
    return facts_of(Measured(ours, np.ones(len(number)), higher_is_better=True), theirs, slices)


def slice_outcomes(gate: GateSpec, words: str, qualities: Floats) -> Counter[Outcome]:
    rng = np.random.default_rng(1)
    found: Counter[Outcome] = Counter()
    for _ in range(COMPARISONS):
        verdict = decide(gate, sliced(rng, qualities))
        found[next(rule.outcome for rule in verdict.rules if words in rule.asked)] += 1
    return found


BY_CLASS: tuple[Slicing, ...] = ("class",)


def test_with_one_slice_at_its_bar_the_gate_passes_as_seldom_as_without_others() -> None:
    gate = GateSpec(slice_bars={"class": RELEASE})
    qualities = np.array([RELEASE] + [0.97] * (NUM_SLICES - 1))

    found = slice_outcomes(gate, "in every slice", qualities)

    assert found[Outcome.PASS] <= most(ERROR)
    assert found[Outcome.FAIL] <= most(ERROR)


def test_with_every_slice_at_its_bar_few_fail_by_chance() -> None:
    gate = GateSpec(slice_bars={"class": RELEASE})

    found = slice_outcomes(gate, "in every slice", np.full(NUM_SLICES, RELEASE))

    assert found[Outcome.FAIL] <= most(ERROR)  # uncorrected, five times that
    assert found[Outcome.PASS] == 0


def test_slices_are_told_from_the_releases_no_more_often_than_the_level_says() -> None:
    gate = GateSpec(tolerance=0, slices=BY_CLASS)

    found = slice_outcomes(gate, "no slice by class", np.full(NUM_SLICES, RELEASE))

    assert found[Outcome.FAIL] <= most(ERROR)
    assert found[Outcome.CANNOT_TELL] == 0
