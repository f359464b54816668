"""Tuners at equal training compute: ours, random search, Optuna's, Ray Tune's; and ours killed.

    python -m benchmarks.tune [--part contest|overhead|kills] [--seeds 16] [--kills 50] [--quick]

Each searches the same spaces of two real problems, with the compute of random search's full
trainings. What it would choose is judged by held-out loss after trainings with fresh seeds. Then:
what the tuning plane itself takes, and studies of which processes are killed and paused.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.overhead import dispatch_seconds, shipped, tuner_share
from benchmarks.peers.tune import DEFAULTS, NUM_RANDOM, RANDOM
from benchmarks.result import Bar, Bars, Counts, Series, Table, write
from benchmarks.trainings import FRESH_SEEDS, Trainings
from benchmarks.tuner_contest import OURS, REPEATED, Entry, hold
from millrace.job import Job
from millrace.launch import environment_of_child
from tests.pipelines_for_tests import ROOT, Tree, build_classification
from tests.tune_kill_loop import KillLoop, Tally, run_unbroken

OF_RANDOM, OF_DEFAULTS, TUNER_SHARE, DISPATCH = 0.42, 1.5, 0.01, 50
NETWORK = Path(__file__).parent / "peers" / "window.py"
DISPATCH_RUNS, LEAST_KILLS = 3, 20
KILLED: dict[str, Any] = {"trials": 24, "steps": 270, "together": 4, "workers": 2}
"""Of the study that is killed: long enough for many kills."""
RATE = {"low": 1e-4, "high": 1e-1, "log": True}
DECAY = {"low": 1e-4, "high": 1.0, "log": True}
CASES: dict[str, dict[str, Any]] = {
    "digits": {
        "source": {"url": "package://sklearn/datasets/data/digits.csv.gz", "header": False},
        "task": {"kind": "classification", "label": "64", "shape": [1, 8, 8]},
        "split": {"validation": 0.2, "test": 0.3},
        "network": {"name": "conv", "width": 8, "dropout": 0.1},
        "train": {"steps": 90, "batch": 32, "ranks": 1, "validate_samples": 10**6},
        "search": {
            "space": {
                "train.learning_rate": RATE,
                "train.weight_decay": DECAY,
                "train.batch": {"choices": [16, 32, 64]},
                "network.width": {"choices": [4, 8, 16]},
                "network.dropout": {"low": 0.0, "high": 0.5},
            },
            "steps": 90,
        },
    },
    "library": {
        "source": {"url": "stdlib://[a-d]*/*.py"},
        "task": {"kind": "language_model", "block_bytes": 32},
        "split": {"validation": 0.1, "test": 0.2},
        "network": {"name": "window.py:Window", "width": 32, "context": 4},
        "train": {"steps": 90, "batch": 16, "ranks": 1, "validate_samples": 384},
        "search": {
            "space": {
                "train.learning_rate": {"low": 3e-4, "high": 0.3, "log": True},
                "train.weight_decay": DECAY,
                "train.warmup": {"low": 0.02, "high": 0.5},
                "train.batch": {"choices": [8, 16, 32]},
                "network.width": {"choices": [16, 32, 64, 128]},
            },
            "steps": 90,
        },
    },
}


NOTES = """Every tuner begins with the default. The budget of a seed is what {num_random} full
trainings of random search take. A training costs its steps by the CPU seconds of a step of its
shape, measured once on one core; validation is not counted. Of what a tuner would choose at each
moment, quality is the mean loss on the test split after full trainings with {fresh} seeds that no
tuner has seen. `{repeated}` also pays for training its leading trials and the default once more
with a fresh seed, and chooses by the mean. A share is that of the budget at which a quality was
first reached: the median of random search's last choices, or of Optuna's defaults'; studies that
never reached it count as 1. Ray Tune's scheduler is asked directly, one trial at a time: what Ray
takes to start and follow trials is not counted."""


OVERHEAD_NOTES = """CPU seconds of all processes together. A job is one step of `digits` as it
ships, validated: in a warm worker, and with a worker started for it alone. The study is that of
`stdlib_lm` as it ships: the tuner with its database and export, its workers with their start."""
KILL_NOTES = """Of the tree of follower, coordinator and two workers one process is killed -9 at a
time, or a worker is stopped (SIGSTOP) and perhaps let go on later; a study that comes to its end is
compared with the unbroken one, and the next begins: a small classification, {search}."""


def main() -> None:
    """Run, write the result files, print one JSON line for each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=sorted(PARTS), help="all of them by default")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--memo", type=Path, help="folder of losses that a run of this very code has found"
    )
    parser.add_argument("--quick", action="store_true", help="2 seeds, 4 kills, no file")
    asked = parser.parse_args()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # as our workers run
        os.execve(sys.executable, sys.orig_argv, environment_of_child())  # noqa: S606  ourselves
    if asked.quick:
        asked.seeds, asked.kills = 2, 4
    for part in [asked.part] if asked.part else PARTS:
        with tempfile.TemporaryDirectory(prefix="millrace-benchmark-") as name:
            result = PARTS[part](asked, Path(name))
        write(
            "tune",
            result.tables,
            notes=result.notes,
            packages="torch optuna ray" if part == "contest" else "torch optuna",
            is_kept=not asked.quick,
            part=part,
        )


@dataclass(frozen=True)
class Result:
    """What a part has found."""

    tables: Sequence[Table | Counts | Bars]
    notes: str


def measure_contest(asked: argparse.Namespace, folder: Path) -> Result:
    """Tuners at equal compute."""
    found = {case: _contest(case, folder, asked.memo or folder, asked.seeds) for case in CASES}
    return Result([Bars(list(_bars(found))), *_tables(found)], _notes(found))


def measure_overhead(asked: argparse.Namespace, folder: Path) -> Result:
    """What the tuning plane itself takes."""
    dispatched, studied = (_made(folder / name) for name in ("dispatched", "studied"))
    runs = 1 if asked.quick else DISPATCH_RUNS
    fresh, warm = dispatch_seconds(shipped("digits", dispatched), runs)
    tuner, training = tuner_share(shipped("stdlib_lm", studied))
    bars = [
        Bar("tuner's CPU to its workers'", tuner / training, TUNER_SHARE, is_ceiling=True),
        Bar(
            "a fresh process's CPU for a job to a warm worker's",
            median(fresh) / median(warm),
            DISPATCH,
        ),
    ]
    tables = [
        Table("CPU seconds of a job", [Series("warm", warm), Series("fresh process", fresh)]),
        Table("CPU seconds of a study", [Series("tuner", [tuner]), Series("workers", [training])]),
    ]
    return Result([Bars(bars), *tables], OVERHEAD_NOTES)


def measure_kills(asked: argparse.Namespace, folder: Path) -> Result:
    """Studies of which processes are killed and paused."""
    tally = _kill(folder, asked.kills)
    bars = [Bar("processes killed or paused", tally.num_kills, LEAST_KILLS)]
    for what, number in (
        ("studies that ended with another result", tally.num_different),
        ("trials left RUNNING", tally.num_running),
        ("studies with trials too many, too few or twice", tally.num_miscounted),
        ("stray processes", tally.num_strays),
        ("studies that hung", tally.num_hangs),
        ("errors that no kill explains", len(tally.errors)),
    ):
        bars.append(Bar(what, number, 0, is_ceiling=True))
    told = (
        f"{tally.num_attempts} attempts made {tally.num_studies} whole studies; "
        f"{tally.num_returned} paused workers were let go on later."
    )
    notes = "\n".join([KILL_NOTES.format(search=json.dumps(KILLED)), "", told, *tally.errors])
    return Result([Bars(bars), Counts("killed", {"ours": dict(tally.killed)})], notes)


PARTS = {"contest": measure_contest, "overhead": measure_overhead, "kills": measure_kills}


def _contest(case: str, folder: Path, memo: Path, seeds: int) -> dict[str, Entry]:
    where = folder / case
    where.mkdir()
    shutil.copy(NETWORK, where)
    memo.mkdir(parents=True, exist_ok=True)
    trainings = Trainings(CASES[case], where, memo / f"{case}.jsonl")
    entries = hold(trainings, range(seeds))
    trainings.close()
    return entries


def _kill(folder: Path, num_kills: int) -> Tally:
    mark = f"MILLRACE_TEST_TREE={uuid.uuid4().hex}"
    os.environ |= dict([mark.split("=")]) | {"PYTHONPATH": str(ROOT)}
    line, tree = build_classification(_made(folder / "killed")), Tree(folder, mark)
    section = line.spec.search.model_dump() | KILLED

    def job(key: str) -> Job:
        return line.job(key, search=section)

    return KillLoop(job, tree, run_unbroken(job("unbroken"), tree)).run(num_kills)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _targets(entries: Mapping[str, Entry]) -> dict[str, float]:
    """The quality to reach: the median of the last choices of each tuner that sets one."""
    return {name: median(entries[name].finals) for name in (RANDOM, DEFAULTS)}


def _bars(found: Mapping[str, Mapping[str, Entry]]) -> Iterator[Bar]:
    for case, entries in found.items():
        targets = _targets(entries)
        for ours in (OURS, REPEATED):
            share = median(entries[ours].shares(targets[RANDOM]))
            what = f"{case}: {ours}: share of random search's compute at its quality"
            yield Bar(what, share, OF_RANDOM, is_ceiling=True)
            theirs, own = (
                median(entries[name].shares(targets[DEFAULTS])) for name in (DEFAULTS, ours)
            )
            what = f"{case}: {ours}: compute of {DEFAULTS} to ours at their quality"
            yield Bar(what, theirs / own, OF_DEFAULTS)


def _tables(found: Mapping[str, Mapping[str, Entry]]) -> Iterator[Table]:
    for case, entries in found.items():
        held = {name: entry for name, entry in entries.items() if entry.curves}
        for name, target in _targets(entries).items():
            unit = f"{case}: share of the budget at the quality of {name}, {target:.4f}"
            yield Table(unit, [Series(one, held[one].shares(target)) for one in held])
        yield Table(f"{case}: loss at the end", [Series(one, held[one].finals) for one in held])
        yield Table(f"{case}: trials", [Series(one, held[one].num_trials) for one in held])


def _notes(found: Mapping[str, Mapping[str, Entry]]) -> str:
    lines = [NOTES.format(num_random=NUM_RANDOM, fresh=len(FRESH_SEEDS), repeated=REPEATED), ""]
    for case, spec in CASES.items():
        lines.append(f"- {case}: {json.dumps(spec)}")
        for name, target in _targets(found[case]).items():
            reached = ", ".join(
                f"{one} {entry.num_reached(target)}" for one, entry in found[case].items()
            )
            lines.append(f"- {case}: studies that reached the quality of {name}: {reached}")
        lines += [
            f"- {case}: {name} is missing ({entry.refused})"
            for name, entry in found[case].items()
            if entry.refused
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
