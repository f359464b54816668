"""Tune small, train large: a network's learning rate, found on narrower ones that cost less.

    can the study pay for its trials at the full width? --> yes: off, with the reason
    no --> trainings of two or three smaller widths, rate by rate --> the rate at the full width,
           with an interval --> values that the study tries first: its verification

The rate alone is transferred. Batch, steps, schedule, warm-up and clipping are those of the spec at
every width: they are shares and norms, and a rate moves with batch and steps. What regularizes
(dropout, weight decay) is left to the study, too: how much of it is best depends on how many
weights there are for the data (Yang et al. 2022, Tensor Programs V, table 1).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from typing import Any, Protocol

from millrace.errors import SpecError
from millrace.frozen import Scalar
from millrace.search import Range
from millrace.spec import CustomNetwork, PipelineSpec
from millrace.telemetry import log
from millrace.tune.rates import (
    Extrapolation,
    Parabola,
    Trained,
    extrapolate,
    first_rates,
    next_rate,
    parabola,
)
from millrace.tune.rung import Pool, Rung, RungJob

RATE, WIDTH = "train.learning_rate", "network.width"
DEAR = 4.0
"""Times its share of the budget that a full trial must cost for small ones to come first."""
SHARE = 0.5
"""Of the budget, the most that the small widths may cost."""
DIVISORS = (4, 8, 16)
"""Of the full width: a quarter of it is near enough, and costs a fraction."""
LEAST_WIDTH = 16
LIKELY_SLOPE = -0.5
"""Between what theory allows, where one width alone is known."""
WIDE = 4.0
"""An interval whose ends differ by more than this gives its lower end a try as well."""
PROBE_STEPS = (2, 6)
"""Of two trainings whose difference in time is that of their steps."""


class Train(Protocol):
    """Trains the spec with each of some values in it, as one trial of the study would be."""

    def __call__(self, values: Sequence[Mapping[str, Scalar]], to: int) -> Sequence[Rung]:
        """Each trained from the start to step `to` of `search.steps`, and validated."""


@dataclass(frozen=True)
class Optimum:
    """The best learning rate of one width, by its parabola."""

    width: int
    rate: float
    loss: float


@dataclass(frozen=True)
class Transfer:
    """What was found on smaller widths for a larger one, or why none were looked at."""

    why: str
    """Why it is on or off: a sentence with figures."""
    width: int = 0
    """The full one; 0: the network has none."""
    values: tuple[Mapping[str, Scalar], ...] = ()
    """What the study should try first; empty: it is off."""
    found: Extrapolation | None = None
    optima: tuple[Optimum, ...] = ()
    octave_loss: float = 0.0
    """What a rate of half or twice the best one is expected to lose."""
    trained: tuple[Trained, ...] = ()
    seconds: float = 0.0
    """What all of it took the workers."""
    full_loss: float = math.nan
    """Of the full width at the rate that was found; NaN: not trained."""

    @property
    def is_verified(self) -> bool:
        """Whether the full width does as well as the smaller ones, or as their losses lead to.

        A wider network may do worse than a narrow one in as few steps, at the best rate of each.
        """
        if self.found is None or math.isnan(self.full_loss):
            return False
        expected = max(self.found.loss, min(one.loss for one in self.optima))
        return self.full_loss <= expected + 2 * self.found.noise

    def with_full_loss(self, loss: float) -> "Transfer":
        """With the loss of a full trial at `values[0]`."""
        return replace(self, full_loss=loss)

    def verified_by(self, trials: Sequence[Mapping[str, Any]]) -> "Transfer":
        """With the loss of the study's own trial at `values[0]`, if that was not pruned."""
        own = [one["loss"] for one in trials if self.values and one["values"] == self.values[0]]
        whole = [loss for loss in own if loss is not None]
        return self.with_full_loss(whole[0]) if whole else self

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the facts of a study; what is not finite is None."""
        told: dict[str, Any] = {
            "why": self.why,
            "values": [dict(one) for one in self.values],
            "seconds": self.seconds,
        }
        if self.found is None:
            return told
        return told | {
            "width": self.width,
            **asdict(self.found),
            "octave_loss": self.octave_loss,
            "optima": [asdict(one) for one in self.optima],
            "trained": [
                asdict(one) | {"loss": one.loss if math.isfinite(one.loss) else None}
                for one in self.trained
            ],
            "full_loss": None if math.isnan(self.full_loss) else self.full_loss,
            "is_verified": self.is_verified,
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Transfer":
        """Inverse of `to_dict`, also after a trip through JSON; without a full loss."""
        values = tuple(told["values"])
        if not values:
            return cls(told["why"], seconds=told["seconds"])
        return cls(
            why=told["why"],
            width=told["width"],
            values=values,
            found=Extrapolation(**{each.name: told[each.name] for each in fields(Extrapolation)}),
            optima=tuple(Optimum(**one) for one in told["optima"]),
            octave_loss=told["octave_loss"],
            trained=tuple(
                Trained(**one | {"loss": math.inf if one["loss"] is None else one["loss"]})
                for one in told["trained"]
            ),
            seconds=told["seconds"],
        )


def transfer(spec: PipelineSpec, budget_seconds: float, train: Train) -> Transfer:
    """Look for the learning rate on smaller widths, if the full one is too dear to search at.

    Args:
        spec: Of the study.
        budget_seconds: Of the whole study, summed over workers; infinite: it has none.
        train: How trials are trained.
    """
    if math.isinf(budget_seconds):
        return Transfer("off: no budget bounds the study, so it searches at full width")
    if against := reason_against(spec):
        return Transfer(against)
    search = spec.search
    warmed = train([{}] * search.workers, 1)
    short, long = (train([{}], steps)[0] for steps in PROBE_STEPS)
    seconds = sum(rung.seconds for rung in (*warmed, short, long))
    full_seconds = full_trial_seconds(short, long, search.steps)
    why = (
        f"a trial of width {width_of(spec)} takes {full_seconds:.3g} s, the budget has "
        f"{budget_seconds / search.trials:.3g} s for each of {search.trials}"
    )
    if not is_too_dear(full_seconds, search.trials, budget_seconds):
        return Transfer(f"off: {why}, which is not {DEAR:g} times less", seconds=seconds)
    sweep = _Sweep(spec, train, SHARE * budget_seconds - seconds)
    parabolas = sweep.run(small_widths(spec))
    seconds += sweep.seconds
    if len(parabolas) < 2:
        told = f"off: {why}; but {sweep.why_not}"
        return Transfer(told, seconds=seconds, trained=tuple(sweep.trained))
    return _transferred(spec, parabolas, sweep, f"on: {why}", seconds)


def _transferred(
    spec: PipelineSpec, parabolas: Sequence[Parabola], sweep: "_Sweep", why: str, seconds: float
) -> Transfer:
    found = extrapolate(parabolas, width_of(spec), sweep.low, sweep.high)
    rates = [found.rate] + ([found.low] if found.high > WIDE * found.low else [])
    default = spec.values_at(spec.search.space)
    log(
        f"width {width_of(spec)}: learning rate {found.rate:.3g} [{found.low:.3g}, "
        f"{found.high:.3g}], from {len(sweep.trained)} trainings of smaller widths"
    )
    return Transfer(
        why=why,
        width=width_of(spec),
        values=tuple(default | {RATE: rate} for rate in rates),
        found=found,
        optima=tuple(Optimum(p.width, 2**p.best_octave, p.best_loss) for p in parabolas),
        octave_loss=sum(p.curvature for p in parabolas) / len(parabolas),
        trained=tuple(sweep.trained),
        seconds=seconds,
    )


class _Sweep:
    """Trainings of small widths, as far as the seconds last."""

    def __init__(self, spec: PipelineSpec, train: Train, most_seconds: float) -> None:
        values = spec.search.space[RATE]
        assert isinstance(values, Range), "`reason_against` asks for a range"
        self.low, self.high = float(values.low), float(values.high)
        self._train, self._steps, self._most_seconds = train, spec.search.steps, most_seconds
        self.trained: list[Trained] = []
        self.seconds, self._seconds_each, self._is_paid_for = 0.0, 0.0, True
        self.why_not = "fewer than two smaller widths have a best learning rate"

    def run(self, widths: Sequence[int]) -> list[Parabola]:
        """The parabolas of the widths, the smaller ones first."""
        found: list[Parabola] = []
        for width in widths:
            trained = self._sweep(width, self._likely(found, width))
            if not self._is_paid_for:
                self.why_not = f"the smaller widths would take more than {SHARE:.0%} of the budget"
                break
            fitted = parabola(trained)
            if fitted is not None:
                found.append(fitted)
                log(f"width {width}: best learning rate {2**fitted.best_octave:.3g}")
        return found

    def _sweep(self, width: int, around: float | None) -> list[Trained]:
        """All trainings of a width; the first one, alone, tells what the others will cost."""
        rates = first_rates(self.low, self.high, around)
        trained = self._trainings(width, [rates.pop(len(rates) // 2)])
        if self._can_pay_for(len(rates)):
            trained += self._trainings(width, rates)
            while (rate := next_rate(trained, self.low, self.high)) and self._can_pay_for(1):
                trained += self._trainings(width, [rate])
        return trained

    def _trainings(self, width: int, rates: Sequence[float]) -> list[Trained]:
        rungs = self._train([{WIDTH: width, RATE: rate} for rate in rates], self._steps)
        seconds = sum(rung.seconds for rung in rungs)
        self.seconds, self._seconds_each = self.seconds + seconds, seconds / len(rungs)
        found = [
            Trained(width, rate, math.inf if rung.failed else rung.loss)
            for rate, rung in zip(rates, rungs, strict=True)
        ]
        self.trained += found
        return found

    def _can_pay_for(self, number: int) -> bool:
        """Whether so many more, as dear as the last ones, stay within what may be spent."""
        total_seconds = self.seconds + number * self._seconds_each
        self._is_paid_for = self._is_paid_for and total_seconds <= self._most_seconds
        return self._is_paid_for

    def _likely(self, found: Sequence[Parabola], width: int) -> float | None:
        """Where the best rate of the next width is likely."""
        if not found:
            return None
        last = found[-1]
        return float(2 ** (last.best_octave + LIKELY_SLOPE * math.log2(width / last.width)))


def through(pool: Pool) -> Train:
    """A `Train` by a pool of which nothing else is in hand.

    Its trainings have numbers below 0, which no trial of the study has.
    """
    numbers = count(-1, -1)

    def train(values: Sequence[Mapping[str, Scalar]], to: int) -> list[Rung]:
        jobs = [RungJob(next(numbers), dict(one), to) for one in values]
        for job in jobs:
            pool.submit(job)
        ended: dict[RungJob, Rung] = {}
        while len(ended) < len(jobs):
            ended.update(pool.wait())
        for job in jobs:
            pool.forget(job.training)
        return [ended[job] for job in jobs]

    return train


def width_of(spec: PipelineSpec) -> int:
    """The width of the spec's network; 0 if it has none."""
    return int(getattr(spec.network, "width", 0))


def small_widths(spec: PipelineSpec) -> tuple[int, ...]:
    """The widths to look at first, smallest first: those of `DIVISORS` that the network allows."""
    width = width_of(spec)
    wholes = [width // part for part in DIVISORS if width % part == 0]
    return tuple(sorted(each for each in wholes if each >= LEAST_WIDTH and _allows(spec, each)))


def _allows(spec: PipelineSpec, width: int) -> bool:
    try:
        spec.with_values({WIDTH: width})
    except SpecError:
        return False
    return True


def reason_against(spec: PipelineSpec) -> str:
    """Why the learning rate of this spec cannot be found on smaller widths; empty if it can."""
    if isinstance(spec.network, CustomNetwork):
        return "off: whether a network of one's own can be built at other widths is not known"
    if not width_of(spec):
        return f"off: the network {spec.network.name} has no width"
    if not isinstance(spec.search.space.get(RATE), Range):
        return f"off: `search.space` has no range of `{RATE}`"
    if len(small_widths(spec)) < 2:
        return (
            f"off: width {width_of(spec)} has no two widths of at least {LEAST_WIDTH} among a "
            "quarter, an eighth and a sixteenth of it"
        )
    return ""


def full_trial_seconds(short: Rung, long: Rung, steps: int) -> float:
    """Seconds of a trial of so many steps, from trainings to the two of `PROBE_STEPS`."""
    step_seconds = max(0.0, long.seconds - short.seconds) / (PROBE_STEPS[1] - PROBE_STEPS[0])
    return short.seconds + (steps - PROBE_STEPS[0]) * step_seconds


def is_too_dear(full_seconds: float, trials: int, budget_seconds: float) -> bool:
    """Whether all trials in full would cost more than `DEAR` times the budget."""
    return full_seconds * trials > DEAR * budget_seconds
