"""What a training may spend, and how often it pays to checkpoint: both functions of plain numbers.

The interval is Young's (1974), tau = sqrt(2 C M), for a checkpoint that costs C seconds and one
failure in M seconds on average. Daly (2006) adds terms that matter only where C is not far below
M; with C of seconds and M of hours they change the interval by less than a hundredth.
"""

import math
from dataclasses import dataclass
from typing import Literal

from millrace.errors import BudgetError

FIRST_COST_SECONDS = 1.0
"""Taken for C until a checkpoint has been measured."""


def interval_seconds(cost_seconds: float, mtbf_hours: float) -> float:
    """Seconds between checkpoints that lose the least time to writing and to repeating."""
    return math.sqrt(2 * cost_seconds * mtbf_hours * 3600)


@dataclass(frozen=True)
class Pace:
    """How often to checkpoint."""

    every: int | Literal["auto"]
    """`train.checkpoint_every`."""
    mtbf_hours: float
    """Between failures of any of the machines."""

    def interval(self, cost_seconds: float, step_seconds: float) -> int:
        """Steps between checkpoints: as the spec says, or Young's interval at this speed.

        Args:
            cost_seconds: Of a checkpoint: the loop stalled, and the write; NaN: not known yet.
            step_seconds: Of an update.
        """
        if self.every != "auto":
            return self.every
        cost = FIRST_COST_SECONDS if math.isnan(cost_seconds) else cost_seconds
        return max(1, round(interval_seconds(cost, self.mtbf_hours) / max(step_seconds, 1e-9)))

    def is_due(self, step: int, saved_at: int, interval: int) -> bool:
        """Whether a checkpoint is due at a step: at the multiples of a number, if it is one."""
        if self.every == "auto":
            return step - saved_at >= interval
        return step // interval > saved_at // interval

    def steps_left(self, step: int, interval: int, most: int) -> int:
        """Steps to go before the next look, at most so many: not past a multiple of the number."""
        return max(1, most if self.every == "auto" else min(most, interval - step % interval))


@dataclass(frozen=True)
class Budget:
    """Limits of one training over all its attempts; infinite where there is none."""

    max_usd: float
    max_hours: float
    usd_per_hour: float

    def is_spent(self, seconds: float) -> bool:
        """Whether that many seconds reach a limit."""
        return seconds / 3600 >= self.max_hours or self.usd(seconds) >= self.max_usd

    def usd(self, seconds: float) -> float:
        """What that many seconds cost."""
        return seconds / 3600 * self.usd_per_hour

    def error(self, pipeline: str, step: int, steps: int, seconds: float) -> BudgetError:
        """The error of a training that has come to its limit and stands at a checkpoint."""
        limits = [
            f"train.{name} {limit:g}"
            for name, limit in (("max_usd", self.max_usd), ("max_hours", self.max_hours))
            if math.isfinite(limit)
        ]
        return BudgetError(
            f"train {pipeline} to step {steps} within {' and '.join(limits)}",
            f"{self.usd(seconds):.4g} USD and {seconds / 3600:.4g} hours are spent at step {step}",
            f"Raise the limit and run it again: it goes on from step {step}",
        )
