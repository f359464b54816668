"""Confidence intervals by bootstrap over records."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 4000
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Plain values for a manifest."""
        return {"value": self.value, "low": self.low, "high": self.high}


def ratio(sums: Floats, weights: Floats) -> Estimate:
    """sum(sums) / sum(weights) with its percentile interval (Efron 1979) over records.

    Records, not samples, are drawn: samples of one record are alike, and drawing them apart would
    make the interval too narrow. For a share of right and wrong outcomes the interval is widened to
    hold Wilson's as well: where all outcomes are the same, the bootstrap has no width.

    Args:
        sums: (records,) what the metric adds up, per record.
        weights: (records,) what it is divided by.
    """
    found = _bootstrap(sums, weights)
    if (weights == 1).all() and np.isin(sums, (0, 1)).all():
        found = _widened(found, *_wilson(int(sums.sum()), len(sums)))
    return found


def paired(differences: Floats, weights: Floats) -> Estimate:
    """Like `ratio`, of the differences between two contestants on the same records.

    Where the outcomes are right or wrong, the bootstrap alone would call three wins and no loss
    certain: the interval is widened to what the share of wins among the records that differ allows
    (the sign test), and where none differ, to what may have differed unseen.

    Args:
        differences: (records,) ours minus theirs, turned so that more is better.
        weights: (records,) what it is divided by.
    """
    found = _bootstrap(differences, weights)
    if (weights == 1).all() and np.isin(differences, (-1, 0, 1)).all():
        count, wins = len(differences), int((differences > 0).sum())
        differ = wins + int((differences < 0).sum())
        if differ:
            low, high = (differ / count * (2 * end - 1) for end in _wilson(wins, differ))
        else:
            high = _wilson(0, count)[1]
            low = -high
        found = _widened(found, low, high)
    return found


def _bootstrap(sums: Floats, weights: Floats) -> Estimate:
    rng = np.random.default_rng(SEED)
    drawn = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        chosen = rng.integers(0, len(sums), len(sums))
        drawn[i] = sums[chosen].sum() / weights[chosen].sum()
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(sums.sum() / weights.sum()), float(low), float(high))


def _wilson(hits: int, count: int) -> tuple[float, float]:
    """The score interval (Wilson 1927) of a share: of 8 right of 8 it is [0.68, 1], not [1, 1]."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share = hits / count
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z**2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _widened(found: Estimate, low: float, high: float) -> Estimate:
    return Estimate(found.value, min(found.low, low), max(found.high, high))
