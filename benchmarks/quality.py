"""Quality on real data within so many CPU-seconds of training: a case for each data set.

    python -m benchmarks.quality --data FOLDER --case tinyshakespeare [--seeds 3]

FOLDER holds a folder for each case, of its name (for `maxcut`: `qaoa`). Each case goes through the
product: its source files are listed, packed and streamed, and Trainer trains on one core.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.quality_cases import (
    fashion_mnist,
    maxcut,
    movie_reviews,
    tinyshakespeare,
    uci_splice,
)
from benchmarks.quality_cases.case import Case
from benchmarks.result import Bar, Bars, Series, Table, write
from millrace.launch import environment_of_child

CASES: dict[str, Case] = {
    "fashion-mnist": fashion_mnist.CASE,
    "maxcut": maxcut.CASE,
    "movie-reviews": movie_reviews.CASE,
    "tinyshakespeare": tinyshakespeare.CASE,
    "uci-splice": uci_splice.CASE,
}


def main() -> None:
    """Run a case, write its result file, print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--case", choices=sorted(CASES), required=True)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # as our ranks run
        os.execve(sys.executable, sys.orig_argv, environment_of_child())  # noqa: S606  ourselves
    case, runs = CASES[asked.case], []
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory(prefix="millrace-quality-") as scratch:
            runs.append(case.run(asked.data / asked.case, Path(scratch), seed))
    quality = Series("millrace", [run.quality for run in runs])
    seconds = Series("training", [run.cpu_seconds for run in runs])
    others = [Series(name, [value]) for name, value in case.known.items()]
    write(
        "quality",
        [
            Bars(
                [
                    Bar(case.what, quality.median, case.bar, is_ceiling=case.is_ceiling),
                    Bar("CPU-seconds", seconds.median, case.cpu_seconds, is_ceiling=True),
                ]
            ),
            Table(case.what, [quality, *others]),
            Table("CPU-seconds", [seconds]),
        ],
        notes=case.notes,
        packages="torch",
        part=asked.case,
    )


if __name__ == "__main__":
    main()
