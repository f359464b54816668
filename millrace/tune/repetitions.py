"""Training again with fresh seeds: the noise between seeds, and which trial to choose."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from millrace.frozen import Scalar
from millrace.tune.account import Account
from millrace.tune.rung import Rung, RungJob, Training

LEADING = 3
"""Trials that are trained again, the best ones; the default besides."""
TRIALS_PER_LEADING = 4
"""One of so many trials leads: of a short study fewer than three are trained again."""
LEAST_TOLD = 9
"""Trials that must have been told before a study may stop for lack of progress."""


def num_leading(num_trials: int) -> int:
    """How many of the best trials are trained again."""
    return min(LEADING, max(1, num_trials // TRIALS_PER_LEADING))


def noise(losses: Mapping[int, Sequence[float]]) -> float:
    """Standard deviation of a loss between seeds, pooled over trials; NaN where none has two.

    Args:
        losses: By trial, of its trainings with different seeds.
    """
    several = [values for values in losses.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return math.nan
    squares = sum(
        (value - sum(values) / len(values)) ** 2 for values in several for value in values
    )
    return math.sqrt(squares / freedom)


@dataclass(frozen=True)
class Look:
    """What was known when a trial had been told."""

    share: float
    """Of the study's trials or budget, that was spent."""
    best_loss: float
    """Infinite while no trial had ended."""


def gain_of_last_third(looks: Sequence[Look]) -> float:
    """How much the best loss fell in the last third of a study so far; infinite before two thirds.

    What must be trained anyway comes in the first third, and luck is soon repeated: a study is
    not judged by its beginning.
    """
    now = looks[-1]
    if now.share < 2 / 3:
        return math.inf
    before = [look.best_loss for look in looks if look.share <= now.share - 1 / 3]
    return (before[-1] if before else math.inf) - now.best_loss


@dataclass(frozen=True)
class Choice:
    """The trial that is chosen, and what it was chosen by."""

    trial: int
    losses: Mapping[int, Sequence[float]]
    """By trial that was weighed: its own loss first, then those with fresh seeds."""
    noise: float
    """Between seeds; NaN where nothing was trained again."""

    def mean(self, trial: int) -> float | None:
        """Mean loss of a trial over its seeds; None for a trial that was not weighed."""
        losses = self.losses.get(trial)
        return sum(losses) / len(losses) if losses else None


def choose(losses: Mapping[int, Sequence[float]]) -> Choice:
    """The trial with the best mean: the best of many single losses has been lucky, too.

    Args:
        losses: By trial, of its trainings with the same seeds for all; infinite where one diverged.
    """
    chosen = min(losses, key=lambda trial: (sum(losses[trial]) / len(losses[trial]), trial))
    finite = {trial: values for trial, values in losses.items() if all(map(math.isfinite, values))}
    return Choice(chosen, losses, noise(finite))


class Repetitions:
    """Trainings of told trials with fresh seeds, and how they ended.

    Args:
        account: What they are paid from.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._jobs: dict[Training, RungJob] = {}
        self._rungs: dict[Training, Rung] = {}

    def begin(self, trial: int, values: dict[str, Scalar], number: int, steps: int) -> bool:
        """Train a trial `number` times more, if that can be paid; whether it can, or was."""
        seconds = number * steps * self._account.step_seconds
        if (trial, 1) not in self._jobs:
            if not self._account.allows(seconds):
                return False
            for repetition in range(1, number + 1):
                job = RungJob(trial, values, steps, repetition)
                self._jobs[job.training] = job
                self._account.submit(job, 0)
        return True

    def results(self) -> Iterator[tuple[Training, Rung]]:
        """Each that has been begun and how it ended, in the order in which they were begun."""
        for training, job in self._jobs.items():
            if training not in self._rungs:
                self._rungs[training] = self._account.result(job)
                self._account.forget(training)
            yield training, self._rungs[training]

    def ended(self) -> Iterator[tuple[Training, Rung]]:
        """Each that has ended and how, without waiting and without counting what it cost."""
        for training, job in self._jobs.items():
            rung = self._rungs.get(training) or self._account.ended(job)
            if rung is not None:
                yield training, rung

    def losses(self, trial: int) -> list[float]:
        """Of a trial's repetitions whose end is known; infinite where one diverged."""
        return [
            math.inf if rung.failed else rung.loss
            for (number, _), rung in self._rungs.items()
            if number == trial
        ]
