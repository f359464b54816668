"""A benchmark's result: medians and spreads of ours and the peer's runs, written as one file."""

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

FOLDER = Path(__file__).with_name("results")
LOAD_BEFORE = os.getloadavg()[1]
"""Of 5 minutes, when the benchmark was started: afterwards it would be the benchmark's own."""


@dataclass(frozen=True)
class Series:
    """The runs of one contestant in one measure."""

    name: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        """The middle run."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Table:
    """What was measured in one unit."""

    unit: str
    """Of every value, and which direction is better."""
    series: Sequence[Series]
    """Ours first; ratios are of each to it."""

    def to_lines(self) -> list[str]:
        """The table in Markdown."""
        ours = self.series[0]
        rows = [
            f"| {one.name} | {one.median:.4g} | {min(one.values):.4g} to {max(one.values):.4g} | "
            f"{len(one.values)} | {one.median / ours.median:.3f} |"
            for one in self.series
        ]
        head = f"| | median, {self.unit} | spread | runs | ratio to ours |"
        return [head, "|---|---|---|---|---|", *rows, ""]

    def told(self) -> Mapping[str, object]:
        """What the JSON line says."""
        return {one.name: one.median for one in self.series}


@dataclass(frozen=True)
class Counts:
    """How often each contestant met each outcome."""

    unit: str
    rows: Mapping[str, Mapping[str, int]]
    """By contestant, ours first, and by outcome: the same ones for all."""

    def to_lines(self) -> list[str]:
        """The table in Markdown."""
        outcomes = list(next(iter(self.rows.values())))
        rows = [
            f"| {name} | {' | '.join(map(str, row.values()))} |" for name, row in self.rows.items()
        ]
        head = f"| {self.unit} | {' | '.join(outcomes)} |"
        return [head, "|---" * (len(outcomes) + 1) + "|", *rows, ""]

    def told(self) -> Mapping[str, object]:
        """What the JSON line says."""
        return self.rows


@dataclass(frozen=True)
class Bar:
    """What was asked for, and what was measured."""

    what: str
    measured: float
    """NaN where a peer that it takes is missing."""
    bar: float
    is_ceiling: bool = False

    @property
    def verdict(self) -> str:
        """Whether it was reached."""
        if math.isnan(self.measured):
            return "not measured"
        reached = self.measured <= self.bar if self.is_ceiling else self.measured >= self.bar
        return "reached" if reached else "missed"


@dataclass(frozen=True)
class Bars:
    """The bars of a benchmark: they come first in its result."""

    rows: Sequence[Bar]
    unit: str = "bars"

    def to_lines(self) -> list[str]:
        """The table in Markdown."""
        rows = [
            f"| {row.what} | {row.measured:.3g} | {'at most' if row.is_ceiling else 'at least'} "
            f"{row.bar:g} | {row.verdict} |"
            for row in self.rows
        ]
        return ["| | measured | bar | |", "|---|---|---|---|", *rows, ""]

    def told(self) -> Mapping[str, object]:
        """What the JSON line says; null: not measured."""
        return {row.what: None if math.isnan(row.measured) else row.measured for row in self.rows}


def write(
    theme: str,
    tables: Sequence[Table | Counts | Bars],
    *,
    notes: str,
    packages: str,
    is_kept: bool = True,
    part: str = "",
) -> None:
    """Write results/<theme>_<hardware>_<date>.md and print one JSON line.

    Args:
        theme: Name of the benchmark's module.
        tables: One for each unit.
        notes: What was done, in Markdown.
        packages: Names, separated by spaces, whose versions matter.
        is_kept: Whether there is a file; a quick run is only printed.
        part: Name of what was run of a benchmark whose cases have files of their own.
    """
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    cores = os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in packages.split())
    command = " ".join(["python -m", f"benchmarks.{theme}", *as_told(sys.argv[1:])])
    text = "\n".join(
        [
            f"# {theme}",
            "",
            f"- Command: `{command}`",
            f"- Hardware: {cores} cores, {platform.machine()}, GPU: {_gpu()}; "
            f"load before the run {LOAD_BEFORE:.1f} (5 minutes)",
            f"- Versions: Python {platform.python_version()}, {versions}",
            f"- Date: {date}",
            "",
            notes.strip(),
            "",
            *(line for table in tables for line in table.to_lines()),
        ]
    )
    name = f"{theme}_{part}" if part else theme
    path = FOLDER / f"{name}_cpu{cores}_{date}.md"
    if is_kept:
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text)
    told: Mapping[str, object] = {
        "theme": theme,
        "file": path.name if is_kept else "",
        **{table.unit: table.told() for table in tables},
    }
    sys.stdout.write(text + "\n" + json.dumps(told) + "\n")


def as_told(arguments: Sequence[str]) -> list[str]:
    """A command's arguments; for a path of this machine alone its last part, as in `DATA`."""
    return [
        Path(argument).name.upper() if Path(argument).is_absolute() else argument
        for argument in arguments
    ]


def _gpu() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
