"""Our coordinator, spending compute on the small trainings: its pool is this process."""

import math
from collections import deque
from collections.abc import Iterator, Sequence

import optuna

from benchmarks.trainings import UNITS, Ended, Settings, Spending, Training
from millrace.tune import rung as rungs
from millrace.tune.coordinator import Coordinator, new_study
from millrace.tune.repetitions import choose, num_leading
from millrace.tune.rung import Rung, RungJob

ENDLESS = 10_000
"""Trials: the budget ends the study."""


class PoolHere:
    """A pool that trains in this process, one job after the other."""

    def __init__(self, spending: Spending) -> None:
        self._spending = spending
        self._jobs: deque[RungJob] = deque()
        self._trainings: dict[rungs.Training, Training] = {}

    def submit(self, job: RungJob) -> None:
        """Put a job last in line."""
        self._jobs.append(job)

    def wait(self) -> Sequence[tuple[RungJob, Rung]]:
        """Train the first one in line."""
        job, spending = self._jobs.popleft(), self._spending
        if job.training not in self._trainings:
            self._trainings[job.training] = spending.begin(job.values)
        before = spending.spent_seconds
        loss = self._trainings[job.training].to(job.to * UNITS // spending.trainings.steps)
        failed = "" if math.isfinite(loss) else "diverged"
        return [(job, Rung(loss, job.to, spending.spent_seconds - before, failed))]

    def forget(self, training: rungs.Training) -> None:
        """Nothing more comes of a training."""
        self._trainings.pop(training, None)


def search_with_millrace(spending: Spending, seed: int) -> None:
    """The coordinator's own search, without a number of trials; one at a time, as the others."""
    search = spending.trainings.job.spec.search.model_copy(
        update={"trials": ENDLESS, "seed": seed, "repetitions": 0, "together": 1}
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = new_study(search, [dict(spending.trainings.default)])
    coordinator = Coordinator(study, search, PoolHere(spending))
    for _ in coordinator.search():
        if spending.is_over:
            return


def repeated_choices(spending: Spending) -> Iterator[tuple[float, Settings]]:
    """What would be chosen if the search stopped after each of its full trainings.

    Then the leading trials and the default are trained once more with a fresh seed, as a study
    does by default, and the best mean is chosen. What that takes is counted.
    """
    trainings, chosen = spending.trainings, None
    for number in range(1, len(spending.ended) + 1):
        leading = _leading(spending.ended[:number])
        losses = {
            at: [one.loss, trainings.loss(one.values, spending.seed + 1, UNITS)]
            for at, one in enumerate(leading)
        }
        seconds = sum(trainings.seconds(one.values, UNITS) for one in leading)
        best = leading[choose(losses).trial]
        if best is not chosen:
            chosen = best
            yield spending.ended[number - 1].spent_seconds + seconds, best.values


def _leading(ended: Sequence[Ended]) -> list[Ended]:
    """The best, and the default, which was trained first."""
    number = num_leading(3 * len(ended))  # of the trials a third or fewer are trained to the end
    best = sorted(ended, key=lambda one: one.loss)[:number]
    return best if ended[0] in best else [*best, ended[0]]
