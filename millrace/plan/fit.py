"""Constants of the time model from recorded runs, and how well they predict a run left out.

runs --> non-negative least squares on relative errors, with a prior --> constants
     --> what similar runs took beyond them --> a correction
each run, predicted from all the others --> errors, which make the intervals
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import numpy.typing as npt

from millrace.frozen import Frozen
from millrace.plan.spread import Interval, spread
from millrace.plan.time_model import (
    Constants,
    StepConstants,
    loop_quantities,
    start_quantities,
    step_seconds,
    training_seconds,
    validation_quantities,
)
from millrace.work import Timing, Work

Floats = npt.NDArray[np.float64]
PRIOR_WEIGHT = 0.003
"""Of one constant's relative distance from its prior, beside one run's relative error: the runs'
variance (errors of 5 %) by the prior's (errors of about itself)."""
REACH = 0.5
"""Distance, in logarithms of quantities, at which a run's correction counts exp(-1/2)."""
CORRECTION_RUNS = 0.5
"""Weight of no correction beside those of similar runs."""
LEAST_STALL = 0.2
"""Share of the loop spent waiting from which a run tells how fast data come."""


class Run(Frozen):
    """A training as recorded."""

    work: Work
    timing: Timing

    @property
    def seconds(self) -> float:
        """Start, updates and validations of the work's steps."""
        timing = self.timing
        return timing.start_seconds + timing.loop_seconds + timing.validation_seconds


def nonnegative_least_squares(rows: Floats, targets: Floats) -> Floats:
    """Unknowns x >= 0 with the least |rows @ x - targets| (Lawson and Hanson 1974).

    Args:
        rows: (equations, unknowns), of full column rank.
        targets: (equations,)
    """
    num_unknowns = rows.shape[1]
    found = np.zeros(num_unknowns)
    is_free = np.zeros(num_unknowns, bool)
    for _ in range(10 * num_unknowns):
        gradient = rows.T @ (targets - rows @ found)
        blocked = np.where(is_free, -np.inf, gradient)
        best = int(blocked.argmax())
        if is_free.all() or blocked[best] <= 1e-10 * (1 + np.abs(targets).max()):
            break
        is_free[best] = True
        found = _descend(rows, targets, found, is_free)
    return found


def _descend(
    rows: Floats, targets: Floats, start: Floats, is_free: npt.NDArray[np.bool_]
) -> Floats:
    """The least squares over free unknowns; those that would fall below 0 are freed no more."""
    found = start
    while True:
        aim = np.zeros_like(found)
        aim[is_free] = np.linalg.lstsq(rows[:, is_free], targets, rcond=None)[0]
        falling = is_free & (aim <= 0)
        if not falling.any():
            return aim
        step = (found[falling] / np.maximum(found[falling] - aim[falling], 1e-300)).min()
        found = np.maximum(found + step * (aim - found), 0.0)
        is_free &= found > 0


def fit(quantities: Floats, seconds: Floats, prior: Floats) -> Floats:
    """Constants >= 0 that predict `seconds` with the least squared relative error.

    The prior, brought to the scale of the runs, stands beside them as equations of little weight,
    one for each constant.

    Args:
        quantities: (runs, constants)
        seconds: (runs,), above 0.
        prior: (constants,), above 0.
    """
    prior = prior * np.median(seconds / (quantities @ prior))  # a machine slow in all, or fast
    # In multiples of the prior: FLOPs are 10^9 times as many as microbatches.
    rows = quantities * prior / seconds[:, None]
    weight = math.sqrt(PRIOR_WEIGHT)
    equations = np.vstack([rows, weight * np.eye(len(prior))])
    targets = np.concatenate([np.ones(len(seconds)), np.full(len(prior), weight)])
    return prior * nonnegative_least_squares(equations, targets)


def learn(runs: Sequence[Run], prior: Constants) -> Constants:
    """The constants that the runs tell; the prior's, where they tell nothing."""
    unbroken = [run for run in runs if not run.timing.resumed_at]
    warm_up, *step = _fitted(
        [loop_quantities(_done(run)) for run in runs],
        [run.timing.loop_seconds - run.timing.waited_seconds for run in runs],
        (prior.warm_up, *astuple(prior.step)),
    )
    start, start_rank, start_flop = _fitted(
        [start_quantities(run.work) for run in unbroken],
        [run.timing.start_seconds for run in unbroken],
        (prior.start, prior.start_rank, prior.start_flop),
    )
    validation, validation_flop = _fitted(
        [validation_quantities(run.work) for run in unbroken],
        [run.timing.validation_seconds for run in unbroken],
        (prior.validation, prior.validation_flop),
    )
    return replace(
        prior,
        step=StepConstants(*step),
        warm_up=warm_up,
        start=start,
        start_rank=start_rank,
        start_flop=start_flop,
        validation=validation,
        validation_flop=validation_flop,
        data_byte=_data_byte(runs, prior.data_byte),
    )


def _done(run: Run) -> Work:
    """The work of the recorded attempt: what an earlier one did is not in its seconds."""
    return run.work.model_copy(update={"steps": run.work.steps - run.timing.resumed_at})


def _fitted(
    quantities: Sequence[Sequence[float]], seconds: Sequence[float], prior: Sequence[float]
) -> list[float]:
    useful = [i for i, taken in enumerate(seconds) if taken > 0]
    if not useful:
        return list(prior)
    rows = np.array([quantities[i] for i in useful], float)
    taken = np.array([seconds[i] for i in useful], float)
    found: list[float] = fit(rows, taken, np.array(prior, float)).tolist()
    return found


def _data_byte(runs: Sequence[Run], prior: float) -> float:
    """Seconds of a raw byte in the runs that waited for data; else no more than any run shows."""
    paces = [
        (run.timing.loop_seconds / max(1.0, _raw_bytes(run)), run.timing.waited_seconds)
        for run in runs
    ]
    stalled = [
        pace
        for (pace, waited), run in zip(paces, runs, strict=True)
        if waited > LEAST_STALL * run.timing.loop_seconds
    ]
    if stalled:
        return float(np.median(stalled))
    return min([prior, *(pace for pace, _ in paces)])


def _raw_bytes(run: Run) -> float:
    work = _done(run)
    return work.steps * work.batch * work.raw_bytes_per_sample


@dataclass(frozen=True)
class TimeModel:
    """The time model as learnt from runs on one kind of machine."""

    constants: Constants
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, runs: Sequence[Run], prior: Constants) -> "TimeModel":
        """Learn."""
        return cls(learn(runs, prior), tuple(runs))

    def correction(self, work: Work) -> float:
        """Factor on an update's seconds by what similar runs took beyond the constants.

        The mean of their logarithms, weighted by how near they are (Nadaraya 1964, Watson 1964),
        and drawn to 0 where none is near.
        """
        weighted, total = 0.0, CORRECTION_RUNS
        for run in self.runs:
            done = _done(run)
            expected = self.constants.warm_up + done.steps * step_seconds(done, self.constants)
            if run.timing.loop_seconds > 0 and expected > 0:
                weight = math.exp(-(_distance(work, run.work) ** 2) / (2 * REACH**2))
                weighted += weight * math.log(run.timing.loop_seconds / expected)
                total += weight
        return math.exp(weighted / total)

    def step_seconds(self, work: Work) -> float:
        """Seconds of an update."""
        return step_seconds(work, self.constants) * self.correction(work)

    def seconds(self, work: Work) -> float:
        """Seconds of a training that nothing interrupts."""
        parts = training_seconds(work, self.constants)
        return parts.start + parts.updates * self.correction(work) + parts.validations


def _distance(one: Work, other: Work) -> float:
    """How far two trainings are apart in what an update of theirs takes."""
    if one.device != other.device:
        return math.inf
    pairs = (
        (one.share * one.flops_per_sample, other.share * other.flops_per_sample),
        (one.share * one.kept_bytes_per_sample, other.share * other.kept_bytes_per_sample),
        (one.parameters, other.parameters),
        (2.0**one.ranks, 2.0**other.ranks),
        (one.threads, other.threads),
    )
    return math.sqrt(sum(math.log((1 + a) / (1 + b)) ** 2 for a, b in pairs))


def errors_left_out(
    runs: Sequence[Run], prior: Constants, probes: Sequence[Run] = ()
) -> list[float]:
    """Logarithm of actual to predicted seconds of each run, predicted from all the others.

    Args:
        runs: Whole trainings.
        prior: What is taken for granted.
        probes: A few steps each, that constants are learnt from as well, but that tell no error.
    """
    errors = []
    for i, run in enumerate(runs):
        if run.timing.resumed_at == 0 and run.seconds > 0:
            others = [*probes, *runs[:i], *runs[i + 1 :]]
            predicted = TimeModel.of(others, prior).seconds(run.work)
            errors.append(math.log(run.seconds / predicted))
    return errors


def predict_seconds(
    work: Work, runs: Sequence[Run], prior: Constants, probes: Sequence[Run] = ()
) -> Interval:
    """Seconds of a training that nothing interrupts, with their 90 % interval."""
    value = TimeModel.of([*probes, *runs], prior).seconds(work)
    return spread(value, errors_left_out(runs, prior, probes))
