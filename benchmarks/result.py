"""A benchmark's result: medians and spreads of ours and the peer's runs, written as one file."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Series:
    """The runs of one contestant in one measure."""

    name: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        """The middle run."""
        return statistics.median(self.values)


def write(theme: str, unit: str, series: Sequence[Series], *, notes: str, packages: str) -> None:
    """Write results/<theme>_<hardware>_<date>.md and print one JSON line.

    Args:
        theme: Name of the benchmark's module.
        unit: Of every value, and which direction is better.
        series: Ours first; ratios are of each to it.
        notes: What was done, in Markdown.
        packages: Names, separated by spaces, whose versions matter.
    """
    ours = series[0]
    rows = [
        f"| {one.name} | {one.median:.4g} | {min(one.values):.4g} to {max(one.values):.4g} | "
        f"{len(one.values)} | {one.median / ours.median:.3f} |"
        for one in series
    ]
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    cores = os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in packages.split())
    text = "\n".join(
        [
            f"# {theme}",
            "",
            f"- Command: `python -m benchmarks.{theme} {' '.join(sys.argv[1:])}`".rstrip(),
            f"- Hardware: {cores} cores, {platform.machine()}, no GPU; "
            f"load before the run {os.getloadavg()[1]:.1f} (5 minutes)",
            f"- Versions: Python {platform.python_version()}, {versions}",
            f"- Date: {date}",
            "",
            notes.strip(),
            "",
            f"| | median, {unit} | spread | runs | ratio to ours |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{theme}_cpu{cores}_{date}.md"
    path.write_text(text)
    told: Mapping[str, object] = {
        "theme": theme,
        "unit": unit,
        "file": path.name,
        **{one.name: one.median for one in series},
    }
    sys.stdout.write(text + "\n" + json.dumps(told) + "\n")
