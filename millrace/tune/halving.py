"""Successive halving: where trials are compared, which go on, and whether the first look tells.

The rule is asynchronous successive halving by promotion (Li et al. 2020, algorithm 2), as a
function of the losses at one rung: a trial rests there until it is among the best third. Optuna's
pruners decide at once instead. A sampler that learns brings ever better trials, each of which is
then among the best third of those before it: more than a third go on, most of them near copies.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REDUCTION = 3
LEAST_CORRELATION = 0.7
"""Below it the first rung says too little of how a trial will end."""
LEAST_PAIRS = 6
"""Trials that must have ended before their ranks are believed."""
Z, SPEARMAN, NEARLY_ONE = 1.2816, 1.03, 1 - 1e-9
"""The normal's 90 % quantile; what ranks' standard error has beyond that of values, 1.06 ** 0.5."""


def rungs(steps: int) -> tuple[int, ...]:
    """Steps at which trials are compared: a ninth, a third and all of `steps`."""
    return (steps // REDUCTION**2, steps // REDUCTION, steps)


def leading(losses: Mapping[int, float], spare: int = 0) -> list[int]:
    """The best third of the trials at a rung, one at least, and some more; the best first.

    Args:
        losses: By trial.
        spare: How many more.
    """
    number = max(1, len(losses) // REDUCTION) + spare
    return sorted(losses, key=lambda trial: (losses[trial], trial))[:number]


@dataclass(frozen=True)
class Correlation:
    """How well the order at the first rung tells the order at the end."""

    value: float
    """Spearman's rank correlation, corrected for the selection; NaN where it is not defined."""
    num_trials: int
    """That ended: whose loss at the end is known."""

    @property
    def high(self) -> float:
        """The upper end of its one-sided 90 % interval (Fisher 1921; Fieller and others 1957)."""
        if self.num_trials < LEAST_PAIRS or math.isnan(self.value) or self.value >= 1:
            return 1.0
        error = SPEARMAN / math.sqrt(self.num_trials - 3)
        return math.tanh(math.atanh(max(self.value, -NEARLY_ONE)) + Z * error)

    @property
    def is_low(self) -> bool:
        """Whether it is known to be too low for judging by the first rung."""
        return self.high < LEAST_CORRELATION


def correlation(first: Mapping[int, float], last: Mapping[int, float]) -> Correlation:
    """The rank correlation of first and last losses as it would be had all trials ended.

    Only the best third goes on, and among the best alone ranks agree less. So the correlation of
    those that ended is corrected for their narrower range of first ranks (Thorndike 1949, case 2).

    Args:
        first: Losses at the first rung by trial, of all trials.
        last: Losses at the end by trial, of those that ended.
    """
    ended = sorted(first.keys() & last.keys())
    if len(ended) < 2:
        return Correlation(float("nan"), len(ended))
    ranks = _ranks(list(first.values()))
    rank_of = dict(zip(first, ranks, strict=True))
    before = np.array([rank_of[trial] for trial in ended])
    after = _ranks([last[trial] for trial in ended])
    if before.std() == 0 or after.std() == 0:
        return Correlation(float("nan"), len(ended))
    raw = float(np.corrcoef(before, after)[0, 1])
    widening = max(1.0, float(ranks.std() / before.std()))
    value = raw * widening / (1 + raw**2 * (widening**2 - 1)) ** 0.5
    return Correlation(value, len(ended))


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return ranks[inverse]
