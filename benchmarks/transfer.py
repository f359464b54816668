"""A learning rate found on smaller widths against a direct sweep at four times the width.

    python -m benchmarks.transfer [--seeds 3] [--scaled] [--quick]

A GPT over the bytes of the running interpreter's own standard library, packed and trained by the
product, on one core. What each way found is trained once more with a seed that neither has seen.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.quality_cases.case import packed
from benchmarks.result import Bar, Bars, Series, Table, write
from millrace.errors import TrainingError
from millrace.frozen import Scalar
from millrace.job import Job
from millrace.launch import environment_of_child
from millrace.models.gpt import Gpt
from millrace.train.loop import Trainer, TrainingData
from millrace.train.world import World
from millrace.tune.rung import Rung
from millrace.tune.transfer import DEAR, RATE, WIDTH, Transfer, transfer

LOW, HIGH = 2.0**-11, 2.0**-4
OCTAVES = [2.0**octave for octave in range(-11, -3)]
FULL_WIDTH, STEPS, QUICK_STEPS = 128, 60, 9
TRIALS = 64
"""Of the study that cannot be paid for; a direct sweep of the rate alone takes fewer."""
SPEC: dict[str, Any] = {
    "source": {
        "url": "stdlib://**/*.py",
        "exclude": ["site-packages/*", "dist-packages/*", "test/*"],
        "records": "file",
    },
    "task": {"kind": "language_model", "block_bytes": 128},
    "split": {"validation": 0.02, "test": 0.02},
    "network": {"name": "gpt", "width": FULL_WIDTH, "depth": 2},
    "train": {
        "steps": STEPS,
        "batch": 16,
        "ranks": 1,
        "learning_rate": 0.004,
        "validate_samples": 256,
    },
    "search": {
        "space": {RATE: {"low": LOW, "high": HIGH, "log": True}},
        "trials": TRIALS,
        "steps": STEPS,
        "workers": 1,
    },
}
TRANSFER, DIRECT = "transfer", "direct sweep"
AS_IT_IS, SCALED = "rate of a quarter of the width, as it is", "transfer, matrices at 1 / width"
NOTES = """Both ways know the same range of rates (seven octaves) and train with the same steps
and batch. The direct sweep trains the full width at its eight rates; `transfer` is the product's:
parabolas over the rates of an eighth and a quarter of the width, a line through their lowest
points, and one training of the full width that verifies what it leads to; all of that is its cost.
For comparison: the best rate of the quarter, not extrapolated; and with `--scaled` the transfer in
a network whose blocks and last layer learn at a rate that falls as 1 / width (Tensor Programs V),
which the product's do not."""
FRESH = 1000
"""Added to a seed: what was found is judged by a training that no one has looked at."""


@dataclass
class Study:
    """Trainings of the spec with some values in it, on one core of this process."""

    job: Job
    data: TrainingData
    seed: int
    is_scaled: bool = False
    """Whether hidden matrices and the last layer learn at a rate that falls as 1 / width."""

    def __call__(self, values: Sequence[Mapping[str, Scalar]], to: int) -> list[Rung]:
        """As `millrace.tune.transfer.Train`; seconds are those of the CPU."""
        return [self._train(one, to) for one in values]

    def _train(self, values: Mapping[str, Scalar], to: int) -> Rung:
        spec = self.job.spec.with_values({"train.seed": self.seed, **values})
        changed = self.job.model_copy(update={"spec": spec})
        width = int(spec.values_at([WIDTH])[WIDTH])
        start = time.process_time()
        with scaled(width) if self.is_scaled else nullcontext():
            trainer = Trainer(changed, self.data, World.alone(threads=1), steps=spec.search.steps)
        with closing(trainer):
            try:
                trainer.run_to(to)
                loss = trainer.validate()["validation_loss"]
            except TrainingError as error:
                return Rung(float("nan"), to, time.process_time() - start, str(error))
        return Rung(loss, to, time.process_time() - start)


@contextmanager
def scaled(width: int) -> Iterator[None]:
    """Networks built meanwhile learn as in Tensor Programs V: matrices at 1 / width."""
    before, share = Gpt.rate_scales, FULL_WIDTH / 4 / width
    Gpt.rate_scales = before | {"blocks": share, "logits": share}
    try:
        yield
    finally:
        Gpt.rate_scales = before


@dataclass(frozen=True)
class Found:
    """What one way of finding a learning rate led to."""

    rate: float
    loss: float
    """Nats per byte at the full width, with a fresh seed."""
    seconds: float
    """CPU seconds to find it."""
    told: str = ""


def main() -> None:
    """Run, write the result file, print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scaled", action="store_true", help="also with matrices at 1 / width")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # as our workers run
        os.execve(sys.executable, sys.orig_argv, environment_of_child())  # noqa: S606  ourselves
    steps = QUICK_STEPS if asked.quick else STEPS
    with tempfile.TemporaryDirectory(prefix="millrace-transfer-") as scratch:
        sections = {key: SPEC[key] | {"steps": steps} for key in ("train", "search")}
        job, data = packed(SPEC | sections, Path(scratch))
        with closing(data):
            seeds = range(1 if asked.quick else asked.seeds)
            found = [compare(Study(job, data, seed), is_scaled=asked.scaled) for seed in seeds]
    report(found, is_kept=not asked.quick, part="scaled" if asked.scaled else "")


def compare(study: Study, *, is_scaled: bool) -> dict[str, Found]:
    """What each way finds with one seed.

    Args:
        study: Of the seed.
        is_scaled: Whether the transfer is also looked at with matrices' rates scaled.
    """
    steps, rates = study.job.spec.search.steps, OCTAVES
    study([{}], 2)  # warms up
    rungs = study([{RATE: rate} for rate in rates], steps)
    direct_seconds = sum(rung.seconds for rung in rungs)
    tried = [(one.loss, rate) for one, rate in zip(rungs, rates, strict=True) if not one.failed]
    budget_seconds = TRIALS * direct_seconds / len(rates) / (2 * DEAR)
    fresh = replace(study, seed=FRESH + study.seed)
    found = {}

    def judge(name: str, judge_by: Study, rate: float, seconds: float, told: str = "") -> None:
        loss = judge_by([{RATE: rate}], steps)[0].loss
        found[name] = Found(rate, loss, seconds, told)
        print(name, found[name], file=sys.stderr, flush=True)  # noqa: T201  it takes minutes

    plain = transferred(study, budget_seconds)
    judge(TRANSFER, fresh, rate_of(plain), plain.seconds, told(plain))
    judge(DIRECT, fresh, min(tried)[1], direct_seconds)
    judge(AS_IT_IS, fresh, plain.optima[-1].rate, plain.seconds)
    if is_scaled:
        other = transferred(replace(study, is_scaled=True), budget_seconds)
        by = replace(fresh, is_scaled=True)
        judge(SCALED, by, rate_of(other), other.seconds, told(other))
    return found


def transferred(study: Study, budget_seconds: float) -> Transfer:
    """What smaller widths lead to, verified by a training of the full one at their cost."""
    found = transfer(study.job.spec, budget_seconds, study)
    if not found.values:
        raise SystemExit(f"nothing was transferred: {found.why}")
    (rung,) = study([found.values[0]], study.job.spec.search.steps)
    return replace(found.with_full_loss(rung.loss), seconds=found.seconds + rung.seconds)


def rate_of(found: Transfer) -> float:
    """The rate that was found."""
    return float(found.values[0][RATE])


def told(transfer: Transfer) -> str:
    """A line on the way it went."""
    assert transfer.found is not None, "it is on"
    found = transfer.found
    small = ", ".join(f"{one.rate:.3g} at width {one.width}" for one in transfer.optima)
    verdict = "verified" if transfer.is_verified else "not verified"
    return (
        f"{len(transfer.trained)} trainings of smaller widths: best {small}; slope "
        f"{found.slope:.2f}, so {found.rate:.3g} [{found.low:.3g}, {found.high:.3g}] at width "
        f"{transfer.width}, {verdict} by {transfer.full_loss:.3f} (expected {found.loss:.3f})"
    )


def limits(behind: Sequence[float], costs: Sequence[float]) -> Bars:
    """The bars: how far behind the direct sweep, and at what share of its cost."""
    measured = {
        "nats per byte behind the direct sweep, median": (median(behind), 0.05),
        "nats per byte behind it, worst seed": (max(behind), 0.05),
        "cost to the direct sweep's, median": (median(costs), 0.5),
        "cost to it, worst seed": (max(costs), 0.5),
    }
    return Bars([Bar(what, value, bar, True) for what, (value, bar) in measured.items()])


def report(found: Sequence[Mapping[str, Found]], *, is_kept: bool, part: str) -> None:
    """Bars, tables, and how each seed went."""
    losses = {name: [seed[name].loss for seed in found] for name in found[0]}
    seconds = {name: [seed[name].seconds for seed in found] for name in found[0]}
    behind = [ours - best for ours, best in zip(losses[TRANSFER], losses[DIRECT], strict=True)]
    costs = [ours / all_ for ours, all_ in zip(seconds[TRANSFER], seconds[DIRECT], strict=True)]
    lines = [NOTES, ""]
    for seed, ways in enumerate(found):
        lines += [f"- seed {seed}, direct sweep: {ways[DIRECT].rate:.3g}"]
        lines += [f"- seed {seed}, {name}: {way.told}" for name, way in ways.items() if way.told]
    write(
        "transfer",
        [
            limits(behind, costs),
            Table(
                "nats per byte on validation, trained with a fresh seed (lower is better)",
                [Series(name, values) for name, values in losses.items()],
            ),
            Table(
                "CPU seconds to find the rate (lower is better)",
                [Series(name, values) for name, values in seconds.items()],
            ),
        ],
        notes="\n".join(lines),
        packages="torch",
        is_kept=is_kept,
        part=part,
    )


if __name__ == "__main__":
    main()
