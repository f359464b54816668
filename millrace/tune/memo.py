"""The memo of a study: trainings that are known are answered at once, from it instead of a pool."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from millrace.tune.rung import Pool, Rung, RungJob, Settings, Training, settings

Key = tuple[Settings, int, int]
"""Values, repetition and the step trained to: what decides how a rung job ends."""


class Memo:
    """A pool that trains nothing twice.

    What an earlier process of the study trained is known from the beginning and counts as spent
    where it is asked for first; asked for once more, it costs nothing.

    Args:
        pool: What trains the rest.
        known: What has been trained before.
    """

    def __init__(self, pool: Pool, known: Mapping[Key, Rung]) -> None:
        self._pool, self._known = pool, dict(known)
        self._answers: list[tuple[RungJob, Rung]] = []

    def submit(self, job: RungJob) -> None:
        """Answer from what is known, or hand the job on."""
        rung = self._known.get(_key(job))
        if rung is None:
            self._pool.submit(job)
        else:
            self._answers.append((job, rung))
            self._known[_key(job)] = replace(rung, seconds=0.0)

    def wait(self) -> Sequence[tuple[RungJob, Rung]]:
        """Those that have ended since the last time, at least one.

        Raises:
            MillraceError: From the pool.
        """
        if self._answers:
            ended, self._answers = self._answers, []
            return ended
        ended = list(self._pool.wait())
        for job, rung in ended:
            self._known[_key(job)] = replace(rung, seconds=0.0)
        return ended

    def forget(self, training: Training) -> None:
        """Let the pool go of what it keeps of a training."""
        self._pool.forget(training)


def _key(job: RungJob) -> Key:
    return settings(job.values), job.repetition, job.to
