"""A contest of tuners: each searches the same trainings with the same compute, seed by seed."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.own_tuner import repeated_choices, search_with_millrace
from benchmarks.peers.tune import RANDOM, TUNERS, Tuner
from benchmarks.trainings import Settings, Spending, Trainings

OURS, REPEATED = "Millrace", "Millrace, leading trials again"
CONTESTANTS: dict[str, Tuner] = {OURS: search_with_millrace, **TUNERS}


@dataclass
class Entry:
    """One tuner's studies of one case, by seed."""

    curves: list[list[tuple[float, float]]] = field(default_factory=list)
    """Share of the budget, and the held-out loss of what is chosen from there on."""
    num_trials: list[float] = field(default_factory=list)
    refused: str = ""

    @property
    def finals(self) -> list[float]:
        """Held-out loss of each study's last choice."""
        return [curve[-1][1] for curve in self.curves]

    def shares(self, target: float) -> list[float]:
        """Share of the budget at which each study first chose something as good as the target.

        Those that never did count as 1, which is less than they would have needed.
        """
        return [
            next((share for share, loss in curve if loss <= target), 1.0) for curve in self.curves
        ]

    def num_reached(self, target: float) -> int:
        """Of the studies: those that did."""
        return sum(any(loss <= target for _, loss in curve) for curve in self.curves)


def hold(trainings: Trainings, seeds: Sequence[int]) -> dict[str, Entry]:
    """Let each tuner search with each seed; random search goes first, it sets the budget."""
    entries = {name: Entry() for name in (OURS, REPEATED, *TUNERS)}
    for seed in seeds:
        budget = 0.0
        for name in sorted(CONTESTANTS, key=lambda name: name != RANDOM):
            spending = Spending(trainings, seed, budget or float("inf"))
            try:
                CONTESTANTS[name](spending, seed)
            except ImportError as error:
                entries[name].refused = str(error)
                continue
            budget = budget or spending.spent_seconds
            _add(entries[name], spending, spending.choices(), budget)
            if name == OURS:
                _add(entries[REPEATED], spending, list(repeated_choices(spending)), budget)
        trainings.close()
        _say(f"seed {seed}: " + ", ".join(_told(name, one) for name, one in entries.items()))
    return entries


def curve(
    trainings: Trainings, choices: Sequence[tuple[float, Settings]], budget: float
) -> list[tuple[float, float]]:
    """Shares of the budget with the held-out loss of what is chosen from there on."""
    return [
        (seconds / budget, trainings.quality(values))
        for seconds, values in choices
        if seconds <= budget
    ]


def _add(
    entry: Entry, spending: Spending, choices: Sequence[tuple[float, Settings]], budget: float
) -> None:
    entry.num_trials.append(spending.num_begun)
    entry.curves.append(curve(spending.trainings, choices, budget))


def _told(name: str, entry: Entry) -> str:
    return f"{name} {entry.finals[-1]:.4f}" if entry.curves else f"{name} refused"


def _say(what: str) -> None:
    sys.stderr.write(what + "\n")
    sys.stderr.flush()
