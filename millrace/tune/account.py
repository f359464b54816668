"""The account of a study: hands rung jobs to the pool, keeps what ended, counts what it cost."""

import math

from millrace.tune.rung import Pool, Rung, RungJob, Training

COSTLIER = 1.25
"""Times the default's seconds per step above which a trial earns fewer steps: timings wobble."""


class Account:
    """Rung jobs in hand and seconds spent, within a budget.

    A job counts as spent when its result is taken, not when it comes: so what is decided by it is
    decided again in the same way when a study is begun anew over what was recorded.

    Args:
        pool: What trains.
        budget_seconds: Seconds of one worker that may be spent; infinite for none.
    """

    def __init__(self, pool: Pool, budget_seconds: float = math.inf) -> None:
        self._pool = pool
        self.budget_seconds = budget_seconds
        self.spent_seconds = 0.0
        self._num_steps = 0
        self._steps_in_hand: dict[RungJob, int] = {}
        self._ended: dict[RungJob, Rung] = {}

    @property
    def share(self) -> float:
        """How much of the budget is spent; 0 without one."""
        return self.spent_seconds / self.budget_seconds

    @property
    def step_seconds(self) -> float:
        """Mean seconds of a step so far; 0 before the first rung."""
        return self.spent_seconds / self._num_steps if self._num_steps else 0.0

    def allows(self, seconds: float, *, reserved: float = 0.0) -> bool:
        """Whether so many more seconds fit into the budget, beside what is in hand and reserved."""
        if math.isinf(self.budget_seconds):
            return True
        in_hand = sum(self._steps_in_hand.values()) * self.step_seconds
        return self.spent_seconds + in_hand + reserved + seconds <= self.budget_seconds

    def submit(self, job: RungJob, begins_at: int) -> None:
        """Hand a job to the pool; `begins_at` is the step where its training stands."""
        self._steps_in_hand[job] = job.to - begins_at
        self._pool.submit(job)

    def result(self, job: RungJob) -> Rung:
        """How a job ended, once it has.

        Raises:
            MillraceError: From the pool.
        """
        while job not in self._ended:
            self._ended |= dict(self._pool.wait())
        rung, steps = self._ended.pop(job), self._steps_in_hand.pop(job)
        self.spent_seconds += rung.seconds
        self._num_steps += steps - max(0, job.to - rung.step)
        return rung

    def ended(self, job: RungJob) -> Rung | None:
        """How a job ended whose result has not been taken; None where it is not known to have."""
        return self._ended.get(job)

    def forget(self, training: Training) -> None:
        """Let the pool go of what it keeps of a training."""
        self._pool.forget(training)


def earned_steps(step: int, own_seconds: float, default_seconds: float) -> int:
    """Steps to train for at a rung: fewer where a step costs more than one of the default's.

    Args:
        step: The rung.
        own_seconds: Of a step; NaN where it is not known yet.
        default_seconds: Of a step of the spec as written; NaN likewise.
    """
    if own_seconds > COSTLIER * default_seconds:
        return max(1, round(step * default_seconds / own_seconds))
    return step
