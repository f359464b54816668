"""The gate: may this checkpoint become a release? Decided by intervals, never by a point."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from millrace.gates import GateSpec

DEFAULT_BASELINES = {
    "bits_per_byte": ("zstd-19",),
    "bits_per_token": ("unigram",),
    "accuracy": ("majority",),
    "approximation_ratio": ("random",),
}
MIN_DRAWN = 20
"""Test records, or source files where these are drawn, below which no interval is trusted: a
bootstrap of fewer is too narrow."""
TOLERATED_SHARE = 0.01
"""Of the release's metric, by which a checkpoint may be worse where `tolerance` is `auto`."""
SHOWN_SLICES = 5


class Outcome(StrEnum):
    """How the gate, or one of its rules, decides."""

    PASS = "pass"  # noqa: S105  a verdict, not a password
    FAIL = "fail"
    CANNOT_TELL = "cannot tell"
    NO_BASELINE = "no baseline"
    """There is nothing to compare with: the rule neither opens the gate nor closes it."""


@dataclass(frozen=True)
class Rule:
    """One condition: what was asked, how it came out, and the numbers."""

    asked: str
    outcome: Outcome
    found: str


@dataclass(frozen=True)
class Verdict:
    """All rules; the gate opens only when every one passes that has something to compare with."""

    rules: tuple[Rule, ...]

    @property
    def outcome(self) -> Outcome:
        """Fail if any rule fails, else cannot tell if any cannot or none passes, else pass."""
        outcomes = {rule.outcome for rule in self.rules}
        for worst in (Outcome.FAIL, Outcome.CANNOT_TELL):
            if worst in outcomes:
                return worst
        return Outcome.PASS if Outcome.PASS in outcomes else Outcome.CANNOT_TELL

    def __str__(self) -> str:
        return f"{self.outcome}: " + "; ".join(
            f"{rule.asked}: {rule.outcome} ({rule.found})" for rule in self.rules
        )


def decide(gate: GateSpec, evaluation: Mapping[str, Any]) -> Verdict:
    """The verdict on an evaluation's facts.

    A rule passes when the whole interval lies on the good side of its limit, fails when the whole
    interval lies on the other, and cannot tell when the limit lies inside. So a rule that should
    not pass does in (1 - LEVEL) / 2 of all cases at most, and so does the gate, however many rules
    it has, since all must pass (an intersection-union test; Berger 1982). With fewer than MIN_DRAWN
    test records, or source files, no rule can tell.
    """
    rules = [
        *_bar(gate, evaluation),
        *_baselines(gate, evaluation),
        _release(gate, evaluation["release"]),
        *(_slice_bar(slicing, limit, evaluation) for slicing, limit in gate.slice_bars.items()),
        *_slices_of_release(gate, evaluation),
    ]
    count, drawn = evaluation["num_drawn"], evaluation["drawn"]
    if count < MIN_DRAWN:
        few = f"; only {count} test {drawn}, at least {MIN_DRAWN} are needed to decide"
        rules = [
            rule
            if rule.outcome is Outcome.NO_BASELINE
            else replace(rule, outcome=Outcome.CANNOT_TELL, found=rule.found + few)
            for rule in rules
        ]
    return Verdict(tuple(rules))


def tolerance(gate: GateSpec, released: float) -> float:
    """How much worse than a release of this metric a checkpoint may be."""
    return TOLERATED_SHARE * abs(released) if gate.tolerance == "auto" else gate.tolerance


def _bar(gate: GateSpec, evaluation: Mapping[str, Any]) -> Iterator[Rule]:
    if gate.bar != "none":
        estimate = evaluation["estimate"]
        outcome = _reaches(gate.bar, estimate, evaluation)
        yield Rule(_asked_to_reach(gate.bar, evaluation), outcome, _span(estimate))


def _baselines(gate: GateSpec, evaluation: Mapping[str, Any]) -> Iterator[Rule]:
    for name in gate.beats or DEFAULT_BASELINES[evaluation["metric"]]:
        baseline = evaluation["baselines"].get(name)
        if baseline is None:
            known = ", ".join(evaluation["baselines"])
            yield Rule(f"beats {name}", Outcome.FAIL, f"no such baseline; known: {known}")
            continue
        gain = baseline["gain"]
        asked = f"beats {name} ({baseline['value']:.4f})"
        yield Rule(asked, _outcome(gain["low"], gain["high"]), f"gain {_span(gain)}")


def _release(gate: GateSpec, release: Mapping[str, Any]) -> Rule:
    """Whether the checkpoint is not inferior to the release.

    The whole interval of the gain must lie above what is tolerated, as in a trial of
    non-inferiority (CONSORT's extension; Piaggio 2012); a whole interval below it fails.
    """
    asked = "no worse than the release"
    match release["standing"]:
        case "none":
            return Rule(asked, Outcome.NO_BASELINE, "no release before this one")
        case "not comparable":
            return Rule(asked, Outcome.NO_BASELINE, f"not comparable: {release['reason']}")
        case "same":
            return Rule(asked, Outcome.PASS, "same weights")
    gain, tolerated = release["gain"], tolerance(gate, release["value"])
    return Rule(
        f"{asked} ({release['value']:.4f}) by more than {tolerated:.2g}",
        _outcome(gain["low"] + tolerated, gain["high"] + tolerated),
        f"gain {_span(gain)}",
    )


def _slice_bar(slicing: str, limit: float, evaluation: Mapping[str, Any]) -> Rule:
    """Whether every slice reaches its bar.

    One passes by its own interval, which needs no correction: all must pass. It fails only by its
    simultaneous one, or among many good slices some would fail by chance.
    """
    asked = f"{_asked_to_reach(limit, evaluation)} in every slice by {slicing}"
    outcomes = []
    for part in evaluation["slices"].get(slicing, []):
        outcome = _reaches(limit, part, evaluation)
        is_shown = _reaches(limit, part["simultaneous"], evaluation) is Outcome.FAIL
        is_doubtful = outcome is Outcome.FAIL and not is_shown
        is_small = part["num_drawn"] < MIN_DRAWN
        outcomes.append((part, Outcome.CANNOT_TELL if is_doubtful or is_small else outcome))
    return _of_all(asked, [(part, _span(part), outcome) for part, outcome in outcomes])


def _slices_of_release(gate: GateSpec, evaluation: Mapping[str, Any]) -> Iterator[Rule]:
    """Whether no slice is shown to be worse than the release.

    That it is shown for none says little of small ones; to show of each slice that it is not worse
    would take as many records in each as in the whole test split.
    """
    release = evaluation["release"]
    if release["standing"] != "compared":
        return
    tolerated = tolerance(gate, release["value"])
    for slicing in gate.slicings:
        judged = []
        for part in evaluation["slices"].get(slicing, []):
            gain = part["gain"]
            is_worse = gain["simultaneous"]["high"] < -tolerated
            is_shown = is_worse and part["num_drawn"] >= MIN_DRAWN
            outcome = Outcome.FAIL if is_shown else Outcome.PASS
            judged.append((part, f"gain {_span(gain)}", outcome))
        asked = f"no slice by {slicing} shown to be worse than the release by {tolerated:.2g}"
        yield _of_all(asked, judged)


def _of_all(asked: str, judged: Sequence[tuple[Mapping[str, Any], str, Outcome]]) -> Rule:
    """One rule of several slices: it comes out as the worst of them, which are named."""
    if not judged:
        return Rule(asked, Outcome.CANNOT_TELL, "the evaluation has no such slices: make it again")
    outcomes = {outcome for _, _, outcome in judged}
    for worst in (Outcome.FAIL, Outcome.CANNOT_TELL):
        if worst in outcomes:
            told = [
                f"{part['name']}: {found}, of {part['num_records']} records"
                for part, found, outcome in judged
                if outcome is worst
            ]
            more = [f"{len(told) - SHOWN_SLICES} more"] if len(told) > SHOWN_SLICES else []
            return Rule(asked, worst, ", ".join(told[:SHOWN_SLICES] + more))
    return Rule(asked, Outcome.PASS, f"{len(judged)} slices")


def _reaches(limit: float, found: Mapping[str, float], evaluation: Mapping[str, Any]) -> Outcome:
    """Whether an interval of the metric lies on the good side of a limit."""
    if evaluation["higher_is_better"]:
        return _outcome(found["low"] - limit, found["high"] - limit)
    return _outcome(limit - found["high"], limit - found["low"])


def _outcome(low: float, high: float) -> Outcome:
    """Of an interval of something that must not be negative."""
    if low >= 0:
        return Outcome.PASS
    return Outcome.FAIL if high < 0 else Outcome.CANNOT_TELL


def _asked_to_reach(limit: float, evaluation: Mapping[str, Any]) -> str:
    return f"{evaluation['metric']} {'>=' if evaluation['higher_is_better'] else '<='} {limit:g}"


def _span(found: Mapping[str, float]) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
