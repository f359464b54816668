"""How far a prediction may be off: an interval from how far earlier ones were."""

import math
from collections.abc import Sequence

from millrace.frozen import Frozen
from millrace.work import NonNegative

LEVEL = 0.9
PRIOR_SIGMA = 0.3
"""Standard deviation of the logarithm of actual to predicted that is taken for granted before any
run: half as much again, or two thirds, is no surprise."""
PRIOR_RUNS = 4
"""How many runs that is worth."""
# Quantiles 0.95 of Student's t for 4 to 12 degrees of freedom.
_STUDENT = (2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782)
ENOUGH_RUNS = 9
"""From here on the runs' own errors have a 90 % quantile."""


class Interval(Frozen):
    """A predicted value with the ends of its 90 % interval."""

    value: NonNegative
    low: NonNegative
    high: NonNegative

    def times(self, factor: float) -> "Interval":
        """In another unit, or of a multiple."""
        return Interval(value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def plus(self, other: "Interval") -> "Interval":
        """The sum of two values whose errors go together: of one machine, at one time."""
        return Interval(
            value=self.value + other.value, low=self.low + other.low, high=self.high + other.high
        )

    def holds(self, actual: float) -> bool:
        """Whether the actual value lies inside."""
        return self.low <= actual <= self.high


NOTHING = Interval(value=0.0, low=0.0, high=0.0)


def half_width(errors: Sequence[float]) -> float:
    """Half of the 90 % interval around the logarithm of a prediction.

    With nine errors or more, the ceil(0.9 (n + 1))-th smallest of them: of the next run it is not
    exceeded with a probability of 90 % or a little more, whatever their distribution (split
    conformal prediction, Vovk et al. 2005; with errors each of which was predicted from the other
    runs, Barber et al. 2021). With fewer, Student's interval for errors around 0 whose variance is
    not known, the prior's worth of runs included.

    Args:
        errors: Logarithms of actual to predicted, each predicted without its own run.
    """
    count = len(errors)
    if count >= ENOUGH_RUNS:
        return sorted(map(abs, errors))[min(count, math.ceil(LEVEL * (count + 1))) - 1]
    squares = PRIOR_RUNS * PRIOR_SIGMA**2 + math.fsum(error**2 for error in errors)
    return _STUDENT[count] * math.sqrt(squares / (PRIOR_RUNS + count))


def spread(value: float, errors: Sequence[float]) -> Interval:
    """A value that is above 0 with its interval: as much above as below, as ratios."""
    factor = math.exp(half_width(errors))
    return Interval(value=value, low=value / factor, high=value * factor)
