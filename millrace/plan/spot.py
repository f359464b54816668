"""Failures and spot prices: what checkpoints and restarts cost, and which price makes up for them.

With C seconds of a checkpoint, R of a restart and one failure in M seconds (Young 1974, Daly 2006):

    tau = sqrt(2 C M)                                interval between checkpoints
    overhead = C / tau + tau / (2 M) + R / M
             = sqrt(2 C / M) + R / M                 beyond 1, in parts of the useful time
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """What failures cost a training."""

    checkpoint_seconds: float
    """C: the training held up by one checkpoint and the write beside it."""
    restart_seconds: float
    """R: from a failure to the first update after it."""
    mtbf_seconds: float
    """M: between failures of any of the machines."""

    @property
    def interval_seconds(self) -> float:
        """Between checkpoints, so that the least time is lost."""
        return math.sqrt(2 * self.checkpoint_seconds * self.mtbf_seconds)

    @property
    def overhead(self) -> float:
        """Expected time in multiples of the useful time, for a training of many intervals."""
        lost = math.sqrt(2 * self.checkpoint_seconds / self.mtbf_seconds)
        return 1 + lost + self.restart_seconds / self.mtbf_seconds

    def restarts(self, seconds: float) -> float:
        """Expected failures in so many seconds."""
        return seconds / self.mtbf_seconds

    def expected_seconds(self, useful_seconds: float) -> float:
        """Expected seconds of a training that would take `useful_seconds` without failures.

        What a failure loses is half an interval, or half of a training that is shorter than one.
        """
        interval = min(self.interval_seconds, useful_seconds)
        num_checkpoints = math.floor(useful_seconds / self.interval_seconds)
        lost = self.restarts(useful_seconds) * (self.restart_seconds + interval / 2)
        return useful_seconds + num_checkpoints * self.checkpoint_seconds + lost


def break_even_usd_per_hour(usd_per_hour: float, seconds: float, spot_seconds: float) -> float:
    """The price of a spot machine at which it costs what the steady one does.

    Args:
        usd_per_hour: Of the steady one.
        seconds: Expected seconds there.
        spot_seconds: Expected seconds on the spot machine, restarts included.
    """
    return usd_per_hour * seconds / spot_seconds
