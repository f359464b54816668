"""Predicted against measured seconds and dollars of trainings: the time model beside short forms.

    python -m benchmarks.predict [--trainings 40] [--longer 4] [--quick]

Short trainings of a small GPT, drawn at random: steps, batch, width, depth, 1 or 2 ranks. Each is
predicted from those recorded before it alone. Then some of them are run again with four times the
steps, predicted from all the short ones. Each rival has its constant from the very same runs.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.result import Bar, Bars, Series, Table, write
from millrace import manifest as manifests
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.frozen import digest
from millrace.job import Job
from millrace.launch import follow
from millrace.plan import history
from millrace.plan.fit import Run, predict_seconds
from millrace.plan.history import Entry
from millrace.plan.probe import probe
from millrace.plan.spread import ENOUGH_RUNS, Interval
from millrace.plan.time_model import default_constants
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage
from millrace.work import Work

MOST_AFTER_20, MOST_LONGER = 0.10, 0.05
LEAST_HELD, MOST_HELD = 0.85, 0.95
RECORDED = 20
LONGER = 4
STEPS = (30, 60, 120, 240)
NOTES = """Every training is one `python -m millrace train` with processes of its own; its seconds
are those of its manifest, from the first rank's first line to its weights. A prediction of the k-th
training has seen the k - 1 before it, and each rival's constant is the best one for the median
relative error on the same k - 1. `T = C * M / (N * B)`: M bytes of weights, N ranks, one bandwidth
B; `with steps` is the same for each update, a kindness. `constant throughput` is samples over
samples per second. Those by a probe are predicted from twenty steps and no recorded run at all."""

Rival = Callable[[Work], float]
RIVALS: Mapping[str, Rival] = {
    "T = C * M / (N * B)": lambda work: 4.0 * work.parameters / work.ranks,
    "the same with steps": lambda work: 4.0 * work.parameters / work.ranks * work.steps,
    "constant throughput": lambda work: float(work.batch * work.steps),
}


@dataclass
class Told:
    """Relative errors of the predictions, and whether the intervals held."""

    errors: list[float] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    rivals: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in RIVALS})

    def add(self, entry: Entry, before: Sequence[Entry]) -> None:
        """Predict a training from those before it."""
        runs = [run for one in before if (run := one.run) is not None]
        assert entry.work is not None, "trainings tell their quantities"
        found = predicted(entry.work, runs)
        self.errors.append(abs(found.value / entry.seconds - 1))
        self.held.append(found.holds(entry.seconds))
        for name, quantity in RIVALS.items():
            constant = statistics.median(
                one.seconds / quantity(one.work) for one in before if one.work is not None
            )
            value = constant * quantity(entry.work)
            self.rivals[name].append(abs(value / entry.seconds - 1))


def main() -> None:
    """Run, write the result file, print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainings", type=int, default=40)
    parser.add_argument("--longer", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="11 short ones, 1 longer, no file")
    asked = parser.parse_args()
    number, again = (11, 1) if asked.quick else (asked.trainings, asked.longer)
    folder = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    try:
        base = _packed(folder)
        specs = list(_drawn(number, (10, 20, 40) if asked.quick else STEPS))
        foreseen = [_from_probe(base, spec) for spec in specs[:again]]
        short = [_train(base, spec, str(i)) for i, spec in enumerate(specs)]
        long = [_train(base, _longer(s), f"long-{i}") for i, s in enumerate(specs[-again:])]
    finally:
        shutil.rmtree(folder)
    probed = [
        abs(seconds / entry.seconds - 1) for seconds, entry in zip(foreseen, short, strict=False)
    ]
    early, late, longer = Told(), Told(), Told()
    for i in range(ENOUGH_RUNS, number):
        early.add(short[i], short[:i])
    for i in range(RECORDED, number):
        late.add(short[i], short[:i])
    for entry in long:
        longer.add(entry, short)
    _write(early, late, longer, probed, is_kept=not asked.quick)


def predicted(work: Work, runs: Sequence[Run]) -> Interval:
    """Seconds from recorded runs alone."""
    return predict_seconds(work, runs, default_constants(work.device))


def _drawn(number: int, choices: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Sections of the spec, drawn from a seed."""
    draw = random.Random(0)  # noqa: S311  a fixed seed, not a secret
    for _ in range(number):
        batch, ranks = draw.choice((8, 16, 32)), draw.choice((1, 2))
        width = draw.choice((32, 64, 96, 128))
        depth = draw.choice((1, 2, 4))
        steps = draw.choice(choices)
        yield {
            "network": {"name": "gpt", "width": width, "depth": depth, "heads": 4},
            "train": {"steps": steps, "batch": batch, "ranks": ranks, "validate_every": 60},
        }


def _longer(sections: Mapping[str, Any]) -> dict[str, Any]:
    train = dict(sections["train"])
    return {**sections, "train": {**train, "steps": LONGER * train["steps"]}}


def _packed(folder: Path) -> Job:
    """Shards of made texts, and a job on them."""
    draw = random.Random(0)  # noqa: S311  likewise
    source = folder / "source"
    source.mkdir()
    words = [f"{draw.getrandbits(24):x}" for _ in range(400)]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(800)]
    (source / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    spec = PipelineSpec.model_validate(
        {
            "source": {"url": "*.jsonl"},
            "task": {"kind": "language_model", "block_bytes": 128},
            "network": {"name": "gpt"},
            "train": {"steps": 1, "batch": 8},
            "search": {"space": {"train.learning_rate": {"low": 1e-4, "high": 1e-2}}},
        }
    )
    store = FsspecStorage(str(folder / "store"))
    job = Job(pipeline="predict", folder=str(source), spec=spec, store=store.url, work=str(folder))
    listed = manifests.publish(store, ingest(job))
    update = {"inputs": {"source_files": listed.path}, "key": digest("shards", listed.digest)}
    shards = manifests.publish(store, pack(job.model_copy(update=update)))
    return job.model_copy(update={"inputs": {"shards": shards.path}})


def _train(base: Job, sections: Mapping[str, Any], key: str) -> Entry:
    """Train once and read the entry that the run left."""
    spec = base.spec.with_parts(sections)
    job = base.model_copy(update={"spec": spec, "key": digest("predict", key)})
    storage = FsspecStorage(job.store)
    for event in follow("train", job):
        if event["event"] == "made":
            made = manifests.read(storage, event["path"])
    entry = history.of_manifest(storage, made)
    assert entry is not None, "each training leaves an entry"
    sys.stderr.write(f"{key}: {entry.seconds:.2f} s, load {os.getloadavg()[0]:.1f}\n")
    return entry


def _from_probe(base: Job, sections: Mapping[str, Any]) -> float:
    """Seconds of a training predicted from twenty steps, before anything is recorded."""
    spec = base.spec.with_parts(sections)
    found = probe(base.model_copy(update={"spec": spec}), FsspecStorage(base.store))
    return predict_seconds(found.work, [], default_constants("cpu"), found.probes).value


def _write(
    early: Told, late: Told, longer: Told, probed: Sequence[float], *, is_kept: bool
) -> None:
    ours = "the time model"
    held = statistics.mean(early.held)
    after_20 = statistics.mean(late.errors) if late.errors else math.nan
    bars = [
        Bar("mean error after 20 recorded runs", after_20, MOST_AFTER_20, True),
        Bar("mean error, the same run longer", statistics.mean(longer.errors), MOST_LONGER, True),
        Bar("90 % intervals that held, at least", held, LEAST_HELD),
        Bar("90 % intervals that held, at most", held, MOST_HELD, True),
    ]
    tables = [
        Table(
            f"relative error of seconds, {what} (lower is better)",
            [Series(ours, told.errors), *(Series(name, e) for name, e in told.rivals.items())],
        )
        for what, told in (("after 20 recorded runs", late), ("the same run longer", longer))
        if told.errors
    ]
    first = Table(
        "relative error of seconds, by a probe and no recorded run", [Series(ours, probed)]
    )
    counted = f"{len(early.held)} predictions, each from at least {ENOUGH_RUNS} recorded runs."
    write(
        "predict",
        [Bars(bars), *tables, first],
        notes=f"{NOTES}\n\nIntervals: {counted}",
        packages="torch numpy",
        is_kept=is_kept,
    )


if __name__ == "__main__":
    main()
