"""Tuners at equal training compute: ours, random search, Optuna's, Ray Tune's; and ours killed.

    python -m benchmarks.tune [--seeds 16] [--kills 50] [--memo FOLDER] [--quick]

Each searches the same spaces of two real problems, with the compute of random search's full
trainings. What it would choose is judged by held-out loss after trainings with fresh seeds. Then:
what the tuning plane itself takes, and studies of which processes are killed and paused.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.overhead import dispatch_seconds, shipped, tuner_share
from benchmarks.peers.tune import NUM_RANDOM, TUNERS, Tuner
from benchmarks.result import Bar, Bars, Counts, Series, Table, write
from benchmarks.trainings import FRESH_SEEDS, Settings, Spending, Trainings
from millrace.launch import environment_of_child

OURS, RANDOM, DEFAULTS = "Millrace", "random search", "Optuna's defaults"
OF_RANDOM, OF_DEFAULTS, TUNER_SHARE, DISPATCH = 0.42, 1.5, 0.01, 50
RATE = {"low": 1e-4, "high": 1e-1, "log": True}
DECAY = {"low": 1e-4, "high": 1.0, "log": True}
CASES: dict[str, dict[str, Any]] = {
    "digits": {
        "source": {"url": "package://sklearn/datasets/data/digits.csv.gz", "header": False},
        "task": {"kind": "classification", "label": "64", "shape": [64]},
        "split": {"validation": 0.2, "test": 0.3},
        "network": {"name": "mlp", "width": 32, "depth": 2, "dropout": 0.1},
        "train": {"steps": 135, "batch": 32, "ranks": 1, "validate_samples": 10**6},
        "search": {
            "space": {
                "train.learning_rate": RATE,
                "train.weight_decay": DECAY,
                "train.batch": {"choices": [16, 32, 64]},
                "network.width": {"choices": [16, 32, 64, 128]},
                "network.dropout": {"low": 0.0, "high": 0.5},
            },
            "steps": 135,
        },
    },
    "library": {
        "source": {"url": "stdlib://[a-e]*/*.py", "records": "file"},
        "task": {"kind": "language_model", "block_bytes": 64},
        "split": {"validation": 0.1, "test": 0.2},
        "network": {"name": "gpt", "width": 32, "depth": 1},
        "train": {"steps": 135, "batch": 8, "ranks": 1, "validate_samples": 128},
        "search": {
            "space": {
                "train.learning_rate": RATE,
                "train.weight_decay": DECAY,
                "train.warmup": {"low": 0.02, "high": 0.5},
                "train.batch": {"choices": [4, 8, 16]},
                "network.width": {"choices": [16, 32, 64]},
            },
            "steps": 135,
        },
    },
}


@dataclass
class Entry:
    """One tuner's studies of one case, by seed."""

    curves: list[list[tuple[float, float]]] = field(default_factory=list)
    """Share of the budget, and the held-out loss of what is chosen from there on."""
    num_trials: list[int] = field(default_factory=list)
    refused: str = ""

    @property
    def finals(self) -> list[float]:
        """Held-out loss of each study's last choice."""
        return [curve[-1][1] for curve in self.curves]

    def shares(self, target: float) -> list[float]:
        """Share of the budget at which each study first chose something as good as the target.

        Those that never did count as 1, which is less than they would have needed.
        """
        return [
            next((share for share, loss in curve if loss <= target), 1.0) for curve in self.curves
        ]

    def num_reached(self, target: float) -> int:
        """Of the studies: those that did."""
        return sum(any(loss <= target for _, loss in curve) for curve in self.curves)


def hold(trainings: Trainings, tuners: Mapping[str, Tuner], seeds: int) -> dict[str, Entry]:
    """Let each tuner search with each seed, random search first: it sets the budget."""
    entries = {name: Entry() for name in tuners}
    for seed in range(seeds):
        budget = 0.0
        for name, tuner in tuners.items():
            spending = Spending(trainings, seed, budget or float("inf"))
            try:
                tuner(spending, seed)
            except ImportError as error:
                entries[name].refused = str(error)
                continue
            budget = budget or spending.spent_seconds
            entries[name].num_trials.append(spending.num_begun)
            entries[name].curves.append(curve(trainings, spending.choices(), budget))
        trainings.close()
        _say(f"    seed {seed}: " + ", ".join(_told(name, one) for name, one in entries.items()))
    return entries


def curve(
    trainings: Trainings, choices: Sequence[tuple[float, Settings]], budget: float
) -> list[tuple[float, float]]:
    """Shares of the budget with the held-out loss of what is chosen from there on."""
    return [
        (seconds / budget, trainings.quality(values))
        for seconds, values in choices
        if seconds <= budget
    ]


def _told(name: str, entry: Entry) -> str:
    return f"{name} {entry.finals[-1]:.4f}" if entry.curves else f"{name} refused"


def _say(what: str) -> None:
    sys.stderr.write(what + "\n")
    sys.stderr.flush()
