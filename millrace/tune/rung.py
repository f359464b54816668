"""A rung job, how it ends, and what trains them: all that passes between coordinator and pool."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from millrace.frozen import Scalar

Training = tuple[int, int]
"""Which training: number of the trial, and of its repetition (0: the trial itself)."""
Settings = tuple[tuple[str, Scalar], ...]
"""Values of a search space as something that can be looked up by."""


def settings(values: Mapping[str, Scalar]) -> Settings:
    """The same for the same values."""
    return tuple(sorted(values.items()))


@dataclass(frozen=True, eq=False)
class RungJob:
    """Train trial `trial` with `values` up to step `to`, from where it stands."""

    trial: int
    values: dict[str, Scalar]
    to: int
    repetition: int = 0
    """Added to `train.seed`, so that another one is drawn; 0 is the trial itself."""
    max_seconds: float = math.inf
    """It stops before `to` when this rung has taken as long, after a step at least."""

    @property
    def training(self) -> Training:
        """The training that it continues."""
        return self.trial, self.repetition

    def __str__(self) -> str:
        again = f", repetition {self.repetition}" if self.repetition else ""
        return f"trial {self.trial}{again}"


@dataclass(frozen=True)
class Rung:
    """How a rung job ended: with a loss, or with the reason why there is none."""

    loss: float
    """On the validation split; NaN where it failed."""
    step: int
    """Where the training stands."""
    seconds: float
    """What this rung alone took of one worker."""
    failed: str = ""
    memory_bytes: int = 0
    """What a training needs; 0 where there is no limit to it."""
    latency_seconds: float = 0.0
    """Of the answer to one sample; 0 where there is no limit to it."""
    step_seconds: float = math.nan
    """Of a step, without what attempts took that came to nothing; NaN: all of it was for steps."""


class Pool(Protocol):
    """What trains rung jobs, several at once, in any order.

    A training stays warm from one of its rungs to the next until it is forgotten; where it was lost
    it begins anew and comes to the same bits.
    """

    def submit(self, job: RungJob) -> None:
        """Take a job; return at once."""
        ...

    def wait(self) -> Sequence[tuple[RungJob, Rung]]:
        """Those that have ended since the last time, at least one; a job must be in hand.

        Raises:
            MillraceError: What is no trial's outcome: the store, the user's network, the machine.
        """
        ...

    def forget(self, training: Training) -> None:
        """Let go of what is kept of a training."""
        ...
