"""The gate: may this checkpoint become a release? Decided by intervals, never by a point."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from millrace.spec import GateSpec

DEFAULT_BASELINES = {
    "bits_per_byte": ("zstd-19",),
    "bits_per_token": ("unigram",),
    "accuracy": ("majority",),
}
MIN_RECORDS = 20
"""Test records below which no interval is trusted: a bootstrap of fewer is too narrow."""


class Outcome(StrEnum):
    """How the gate, or one of its rules, decides."""

    PASS = "pass"  # noqa: S105  a verdict, not a password
    FAIL = "fail"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Rule:
    """One condition: what was asked, how it came out, and the numbers."""

    asked: str
    outcome: Outcome
    found: str


@dataclass(frozen=True)
class Verdict:
    """All rules; the gate opens only when every one passes."""

    rules: tuple[Rule, ...]

    @property
    def outcome(self) -> Outcome:
        """Fail if any rule fails, else cannot tell if any cannot, else pass."""
        outcomes = {rule.outcome for rule in self.rules}
        for worst in (Outcome.FAIL, Outcome.CANNOT_TELL):
            if worst in outcomes:
                return worst
        return Outcome.PASS

    def __str__(self) -> str:
        return f"{self.outcome}: " + "; ".join(
            f"{rule.asked}: {rule.outcome} ({rule.found})" for rule in self.rules
        )


def decide(gate: GateSpec, evaluation: Mapping[str, Any]) -> Verdict:
    """The verdict on an evaluation's facts.

    A rule passes when the whole interval lies on the good side of its limit, fails when the whole
    interval lies on the other, and cannot tell when the limit lies inside. With fewer than
    MIN_RECORDS test records no rule can tell.
    """
    metric, higher = evaluation["metric"], evaluation["higher_is_better"]
    estimate = evaluation["estimate"]
    rules = []
    if gate.bar != "none":
        limit = float(gate.bar)
        low, high = estimate["low"] - limit, estimate["high"] - limit
        rules.append(
            Rule(
                f"{metric} {'>=' if higher else '<='} {limit:g}",
                _outcome(low, high) if higher else _outcome(-high, -low),
                f"{estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]",
            )
        )
    for name in gate.beats or DEFAULT_BASELINES[metric]:
        baseline = evaluation["baselines"].get(name)
        if baseline is None:
            known = ", ".join(evaluation["baselines"])
            rules.append(Rule(f"beats {name}", Outcome.FAIL, f"no such baseline; known: {known}"))
            continue
        gain = baseline["gain"]
        rules.append(
            Rule(
                f"beats {name} ({baseline['value']:.4f})",
                _outcome(gain["low"], gain["high"]),
                f"gain {gain['value']:.4f} [{gain['low']:.4f}, {gain['high']:.4f}]",
            )
        )
    count = evaluation["num_records"]
    if count < MIN_RECORDS:
        few = f"; only {count} test records, at least {MIN_RECORDS} are needed to decide"
        rules = [replace(r, outcome=Outcome.CANNOT_TELL, found=r.found + few) for r in rules]
    return Verdict(tuple(rules))


def _outcome(low: float, high: float) -> Outcome:
    """Of an interval of something that must not be negative."""
    if low >= 0:
        return Outcome.PASS
    return Outcome.FAIL if high < 0 else Outcome.CANNOT_TELL
