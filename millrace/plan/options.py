"""Compute options: each machine of the price file, alone or several, with what a run takes there.

what the run takes here --> relative speed, ranks on several machines, failures --> seconds, dollars
all options, a deadline --> the cheapest inside it
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from millrace.cost import Machine, Prices, is_spot, steady_twin
from millrace.frozen import Frozen, PositiveInt
from millrace.plan.spot import Failures, break_even_usd_per_hour
from millrace.plan.spread import NOTHING, Interval
from millrace.plan.time_model import Constants, training_seconds
from millrace.work import NonNegative, Work

NETWORK_HOP_SECONDS = 5e-4
NETWORK_BYTES_PER_SECOND = 0.6e9
"""Between machines, taken for granted: a message over TCP, and half of 10 Gbit/s."""
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Demand:
    """What a run takes on this machine, and all that is needed to say it of others."""

    machine: str
    """Kind of this machine."""
    num_cores: int
    study: Interval
    """Seconds of the study."""
    training: Interval
    """Seconds of the training, without failures."""
    work: Work
    constants: Constants
    checkpoint_seconds: float
    """Of one checkpoint: the stall and the write."""
    restart_seconds: float
    """From a failure to the first update after it."""
    watts: float = 0.0
    """Measured power of this machine at work; 0: not measured."""
    speeds: Mapping[str, float] = field(default_factory=dict)
    """Of machines on which runs are recorded, beside this one."""


class Option(Frozen):
    """A kind of machine, how many of them, and what the run would take there."""

    machine: str
    count: PositiveInt
    basis: str
    """How its speed is known; `not measured` leaves everything below at 0."""
    seconds: Interval = NOTHING
    """Study and training, with what failures are expected to cost."""
    usd: Interval = NOTHING
    usd_per_hour: NonNegative = 0.0
    """Of one machine."""
    restarts: NonNegative = 0.0
    """Expected."""
    checkpoint_every_seconds: NonNegative = 0.0
    """Young's interval."""
    overhead: NonNegative = 1.0
    """Expected time of the training in multiples of the useful time."""
    break_even_usd_per_hour: NonNegative = 0.0
    """Of a spot machine: the price at which its steady twin costs the same; 0: it has none."""
    joules: NonNegative = 0.0
    """0: not known."""
    energy_basis: str = ""

    @property
    def is_known(self) -> bool:
        """Whether anything is predicted."""
        return self.basis != NOT_MEASURED

    @property
    def is_spot(self) -> bool:
        """Whether it may be taken back at any time."""
        return is_spot(self.machine)

    @property
    def name(self) -> str:
        """Machine and number."""
        return self.machine + (f" x {self.count}" if self.count > 1 else "")


def options(demand: Demand, prices: Prices) -> list[Option]:
    """All machines of the price file, this one first, with what the run takes there."""
    names = sorted(prices.machines, key=lambda name: name != demand.machine)
    found = [
        _option(demand, prices, name, count)
        for name in names
        for count in prices.machines[name].counts
    ]
    return [_with_break_even(option, found, prices) for option in found]


def cheapest(found: Sequence[Option], deadline_hours: float = math.inf) -> Option | None:
    """The one with the lowest expected price whose high end is inside the deadline."""
    inside = [
        option
        for option in found
        if option.is_known and option.seconds.high <= 3600 * deadline_hours
    ]
    return min(inside, key=lambda option: (option.usd.value, option.seconds.value), default=None)


def _option(demand: Demand, prices: Prices, name: str, count: int) -> Option:
    machine, is_here = prices.machines[name], name == demand.machine
    num_cores = machine.cores or demand.num_cores
    speed, basis = _speed(demand, name, machine, num_cores)
    usd_per_hour = prices.usd_per_hour(name, num_cores)
    if not speed:
        return Option(machine=name, count=count, basis=NOT_MEASURED, usd_per_hour=usd_per_hour)
    factor = _factor_of_several(demand, count) / speed
    if count > 1:
        basis += ", a network taken for granted"
    failures = Failures(
        demand.checkpoint_seconds, demand.restart_seconds, prices.mtbf_hours(name) * 3600 / count
    )
    training = demand.training.times(factor)
    expected = training.times(failures.expected_seconds(training.value) / training.value)
    study = demand.study.times(1 / speed)
    usd = study.plus(expected.times(count)).times(usd_per_hour / 3600)
    watts, energy_basis = _watts(demand, prices, name, num_cores, is_here=is_here)
    return Option(
        machine=name,
        count=count,
        basis=basis,
        seconds=study.plus(expected),
        usd=usd,
        usd_per_hour=usd_per_hour,
        restarts=failures.restarts(expected.value),
        checkpoint_every_seconds=failures.interval_seconds,
        overhead=expected.value / training.value,
        joules=watts * (study.value + count * expected.value),
        energy_basis=energy_basis,
    )


def _speed(demand: Demand, name: str, machine: Machine, num_cores: int) -> tuple[float, str]:
    """Beside this machine, and how it is known; 0: it is not."""
    if name == demand.machine:
        return 1.0, "measured here"
    if name in demand.speeds:
        return demand.speeds[name], "recorded runs there"
    if not machine.relative_speed:
        return 0.0, NOT_MEASURED
    is_by_core = machine.usd_per_core_hour > 0
    cores = num_cores / demand.num_cores if is_by_core else 1.0
    return machine.relative_speed * cores, "relative_speed of the price file"


def _factor_of_several(demand: Demand, count: int) -> float:
    """A training's seconds on `count` machines, each with as many ranks as here, to those on one.

    A batch that cannot be shared so far keeps its time: more machines are of no use to it.
    """
    ranks = demand.work.ranks * count
    if count == 1 or demand.work.batch % ranks:
        return 1.0
    step = replace(
        demand.constants.step,
        hop=max(demand.constants.step.hop, NETWORK_HOP_SECONDS),
        reduced_byte=max(demand.constants.step.reduced_byte, 1 / NETWORK_BYTES_PER_SECOND),
    )
    several = demand.work.model_copy(update={"ranks": ranks})
    one = training_seconds(demand.work, demand.constants).total
    return training_seconds(several, replace(demand.constants, step=step)).total / one


def _watts(
    demand: Demand, prices: Prices, name: str, num_cores: int, *, is_here: bool
) -> tuple[float, str]:
    if is_here and demand.watts:
        return demand.watts, "measured: power of earlier runs"
    watts = prices.watts(name, num_cores)
    return watts, f"modelled: {watts:g} W of the price file" if watts else "not known"


def _with_break_even(option: Option, found: Sequence[Option], prices: Prices) -> Option:
    """Of a spot machine, the price at which its steady twin would cost the same."""
    twin = steady_twin(option.machine)
    if not (option.is_spot and option.is_known and twin in prices.machines):
        return option
    steady = next((o for o in found if (o.machine, o.count) == (twin, option.count)), None)
    if steady is None or not steady.is_known:
        return option
    price = break_even_usd_per_hour(steady.usd_per_hour, steady.seconds.value, option.seconds.value)
    return option.model_copy(update={"break_even_usd_per_hour": price})
