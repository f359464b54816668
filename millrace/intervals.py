"""Confidence intervals by bootstrap over records."""

from dataclasses import dataclass

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
    make the interval too narrow.

    Args:
        sums: (records,) what the metric adds up, per record.
        weights: (records,) what it is divided by.
    """
    rng = np.random.default_rng(SEED)
    drawn = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        chosen = rng.integers(0, len(sums), len(sums))
        drawn[i] = sums[chosen].sum() / weights[chosen].sum()
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(sums.sum() / weights.sum()), float(low), float(high))
