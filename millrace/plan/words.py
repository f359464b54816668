"""A plan in words, as a table and as a picture: the same for the command line and for Dagster."""

import math
from collections.abc import Callable, Sequence

from millrace.pictures import Spot, frontier_chart
from millrace.plan.options import Option
from millrace.plan.outlook import Outlook
from millrace.plan.spread import Interval

HEADS = (
    "option", "seconds, study and training", "$", "expected restarts", "checkpoint every",
    "overhead", "break-even $/h", "energy", "speed known by",
)  # fmt: skip


def in_words(outlook: Outlook) -> str:
    """The plan in a line."""
    here = outlook.here
    return (
        f"plan: study {in_seconds(outlook.study.value)}, training "
        f"{in_seconds(outlook.training.value)} (90 % between {in_seconds(outlook.training.low)} "
        f"and {in_seconds(outlook.training.high)}), together {in_usd(here.usd.value)} on "
        f"{here.name}; by {outlook.basis}"
    )


def choice_in_words(outlook: Outlook) -> str:
    """Which option is the cheapest, and what that would save."""
    hours = outlook.deadline_hours
    inside = "" if hours is None else f" inside the deadline of {hours:g} h"
    if not outlook.chosen:
        return f"no option is sure to end{inside}"
    best = next(option for option in outlook.options if option.name == outlook.chosen)
    if best.name == outlook.here.name:
        return f"this machine ({best.name}) is the cheapest{inside}"
    saved = outlook.here.usd.value - best.usd.value
    return f"{best.name} is the cheapest{inside}: {in_usd(saved)} less than {outlook.here.name}"


def rows(outlook: Outlook) -> list[list[str]]:
    """A row of cells for each option, as `HEADS` names them."""
    return [_row(option, is_chosen=option.name == outlook.chosen) for option in outlook.options]


def _row(option: Option, *, is_chosen: bool) -> list[str]:
    name = option.name + (" (chosen)" if is_chosen else "")
    if not option.is_known:
        return [name, *([""] * (len(HEADS) - 2)), option.basis]
    usd, energy = option.break_even_usd_per_hour, option.energy_basis.partition(":")[0]
    return [
        name,
        with_ends(option.seconds, in_seconds),
        with_ends(option.usd, in_usd),
        f"{option.restarts:.2g}",
        in_seconds(option.checkpoint_every_seconds),
        f"{option.overhead:.3f}",
        f"{usd:.3g} (it is {option.usd_per_hour:.3g})" if usd else "",
        f"{in_joules(option.joules)}, {energy}" if option.joules else "not known",
        option.basis,
    ]


def picture(outlook: Outlook) -> str:
    """Dollars of a run against how many runs an hour holds, each option a spot, as SVG."""
    spots = [
        Spot(
            3600 / option.seconds.value,
            option.usd.value,
            option.name,
            "spot" if option.is_spot else "on demand",
            chosen=option.name == outlook.chosen,
        )
        for option in outlook.options
        if option.is_known
    ]
    return frontier_chart(
        "Cost against time",
        spots,
        x_label="runs per hour (log): study and training. Line: none is both faster and cheaper",
        y_label="dollars a run",
    )


def as_markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table for Dagster's UI."""
    lines = [" | ".join(heads), "|".join(["---"] * len(heads)), *(" | ".join(row) for row in cells)]
    return "\n".join(f"| {line} |" for line in lines)


def as_text(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table for a terminal, without the columns that are empty throughout."""
    shown = [i for i in range(len(heads)) if any(row[i] for row in cells)]
    table = [[heads[i] for i in shown], *([row[i] for i in shown] for row in cells)]
    widths = [max(len(row[i]) for row in table) for i in range(len(shown))]
    return "\n".join("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def with_ends(interval: Interval, told: Callable[[float], str]) -> str:
    """A value and the ends of its interval."""
    return f"{told(interval.value)} [{told(interval.low)}, {told(interval.high)}]"


def in_seconds(seconds: float) -> str:
    """A time with the digits that count: 3.2 s, 47 s, 12 min, 5.1 h."""
    if seconds < 120:
        return _short(seconds, "s")
    return _short(seconds / 60, "min") if seconds < 7200 else _short(seconds / 3600, "h")


def _short(value: float, unit: str) -> str:
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"


def in_usd(amount: float) -> str:
    """Dollars with cents, or with two digits that count below a dollar."""
    if abs(amount) >= 1 or amount == 0:
        return f"${amount:,.2f}"
    digits = 1 - math.floor(math.log10(abs(amount)))
    return f"${amount:.{min(digits, 9)}f}"


def in_joules(joules: float) -> str:
    """Energy in joules, or in kilowatt hours where that is at least a hundredth."""
    return f"{joules / 3.6e6:.2f} kWh" if joules >= 36000 else f"{joules:,.0f} J"
