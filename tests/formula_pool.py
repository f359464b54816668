"""A pool in memory whose trainings are formulas, for tests of what stands on one."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from millrace.frozen import Scalar
from millrace.tune.rung import Rung, RungJob, Training

Loss = Callable[[Mapping[str, Scalar], int, int], float]
"""Of values, step and repetition; not finite: it fails."""


def bowl(values: Mapping[str, Scalar], step: int, repetition: int) -> float:
    """Best at a learning rate of 0.01, better with each step, a little noisy."""
    rate = float(values["train.learning_rate"])
    noise = 0.01 * math.sin(1e5 * rate + 7 * repetition)
    return (math.log10(rate) + 2) ** 2 + 9 / (step + 9) + noise


class FormulaPool:
    """Ends jobs one at a time, in an order drawn from a seed.

    Args:
        loss: The formula.
        step_seconds: What a step takes, by values.
        seed: Of the order.
        found: What is measured of a trial besides, by values.
        on_end: What becomes of how a job ended.
    """

    def __init__(
        self,
        loss: Loss = bowl,
        *,
        step_seconds: Callable[[Mapping[str, Scalar]], float] = lambda _: 0.01,
        seed: int = 0,
        found: Callable[[Mapping[str, Scalar]], dict[str, float]] = lambda _: {},
        on_end: Callable[[RungJob, Rung], Rung] = lambda _, rung: rung,
    ) -> None:
        self._on_end = on_end
        self._loss, self._step_seconds, self._found = loss, step_seconds, found
        self._draw = random.Random(seed)  # noqa: S311  a fixed seed, not a secret
        self._waiting: list[RungJob] = []
        self._steps: dict[Training, int] = {}
        self.trained: list[RungJob] = []
        """Every job, in the order in which they ended."""

    def submit(self, job: RungJob) -> None:
        self._waiting.append(job)

    def wait(self) -> Sequence[tuple[RungJob, Rung]]:
        job = self._waiting.pop(self._draw.randrange(len(self._waiting)))
        self.trained.append(job)
        begins_at, pace = self._steps.get(job.training, 0), self._step_seconds(job.values)
        affordable = job.to - begins_at
        if math.isfinite(job.max_seconds):
            affordable = min(affordable, max(1, int(job.max_seconds / pace)))
        step = begins_at + affordable
        self._steps[job.training] = step
        loss = self._loss(job.values, step, job.repetition)
        rung = Rung(loss, step, affordable * pace, **self._found(job.values))  # type: ignore[arg-type]  # memory is whole
        if not math.isfinite(loss):
            rung = replace(rung, loss=math.nan, step=0, failed=f"the loss is {loss}")
        return [(job, self._on_end(job, rung))]

    def forget(self, training: Training) -> None:
        self._steps.pop(training, None)
