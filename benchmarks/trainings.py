"""Small real trainings for tuners to spend compute on: deterministic, each done once, and priced.

values, seed --> Trainer on packed shards --> validation loss at each ninth of the steps
Spending: what one tuner has spent in CPU seconds of training, and what it would choose
"""

import json
import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.quality_cases.case import packed_shards
from millrace.data.samples import Samples
from millrace.errors import TrainingError
from millrace.frozen import Scalar
from millrace.job import Job
from millrace.storage import FsspecStorage
from millrace.train.loop import Trainer, TrainingData
from millrace.train.world import World

UNITS = 9
"""A full training in units of its first rung."""
RUNGS = (1, 3, 9)
"""Where successive halving compares, in units."""
FRESH_SEEDS = (10_001, 10_002, 10_003)
"""Of the trainings by which a choice is judged; no tuner has seen them."""
RERUN_SEEDS = (20_001, 20_002)
"""Of the trainings by which a tuner may compare its leading configurations once more."""
HELD_OUT_SAMPLES = 512
VALIDATION_BATCH = 512
"""Samples of a forward: whether there are many or few, the loss is the same."""
_OPEN = 16
_WARM_STEPS, _TIMED_STEPS, _TIMINGS = 3, 10, 12
_UNPRICED = ("network.dropout", "train.learning_rate", "train.weight_decay", "train.warmup")
"""Fields that leave the cost of a step as it is."""
Settings = Mapping[str, Scalar]
"""A value for each field of a search space."""


class Trainings:
    """The trainings of one pipeline: a function of values and seed, so each is done once.

    Whoever asks first has it trained; whoever asks later gets the same loss. The price of a step
    is measured once for each shape of network and batch, on one core: a busy machine then costs no
    tuner more than another.

    Args:
        spec: The pipeline, its `search.steps` a multiple of UNITS.
        folder: For its shards.
        memo: A file of losses found by an earlier run of the very same code; it is added to.
    """

    def __init__(self, spec: Mapping[str, Any], folder: Path, memo: Path) -> None:
        self._job, shards = packed_shards(spec, folder)
        storage = FsspecStorage(self._job.store)
        self._data = TrainingData.load(storage, shards, self._job.spec.train.mix)
        self._held_out = replace(self._data, validation=Samples(storage, shards, "test"))
        self._world = World.alone(threads=1)
        self._open: OrderedDict[str, Trainer] = OrderedDict()
        self._memo, self._known = memo, _read(memo)
        self.cpu_seconds = 0.0
        """Of all that was trained here, measured; what was known before cost nothing."""

    @property
    def job(self) -> Job:
        """The pipeline as it stands, its values the default."""
        return self._job

    @property
    def steps(self) -> int:
        """Of a full training."""
        return self._job.spec.search.steps

    @property
    def default(self) -> Settings:
        """The pipeline's own values of what is searched: where every tuner begins."""
        return self._job.spec.values_at(self._job.spec.search.space)

    def loss(self, values: Settings, seed: int, unit: int) -> float:
        """Validation loss after so many units; infinite once the training has diverged."""
        key = _key(values, seed)
        known: dict[str, float] = self._known.get(key, {})
        if str(unit) not in known:
            self._train(key, values, seed, unit)
        return float(self._known[key][str(unit)])

    def seconds(self, values: Settings, units: int) -> float:
        """CPU seconds of so many units of training, by the price of a step."""
        shape = {path: value for path, value in values.items() if path not in _UNPRICED}
        key = "seconds per step " + json.dumps(shape, sort_keys=True)
        if key not in self._known:
            self._remember(key, self._price(values))
        return float(self._known[key]) * self.steps * units / UNITS

    def quality(self, values: Settings) -> float:
        """Mean loss of the test split after full trainings with fresh seeds."""
        key = "quality " + _key(values, 0)
        if key not in self._known:
            self._remember(key, statistics.mean(self._held_out_losses(values)))
        return float(self._known[key])

    def close(self) -> None:
        """Close the trainings that go no further."""
        while self._open:
            self._open.popitem()[1].close()

    def _train(self, key: str, values: Settings, seed: int, unit: int) -> None:
        """Train up to a unit; validate at the rungs on the way, too: others will ask for them."""
        start = time.process_time()
        losses: dict[str, float] = dict(self._known.get(key, {}))
        trainer = self._open.pop(key, None)
        if trainer is None or trainer.step > self._step(unit):
            trainer = self._build(values, seed)
        for at in sorted({*(rung for rung in RUNGS if rung <= unit), unit}):
            if str(at) not in losses:
                losses[str(at)] = self._validated(trainer, at)
        self.cpu_seconds += time.process_time() - start
        self._remember(key, losses)
        self._open[key] = trainer
        if unit == UNITS:
            self._open.pop(key).close()
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)[1].close()

    def _validated(self, trainer: Trainer, unit: int) -> float:
        try:
            trainer.run_to(self._step(unit))
            return trainer.validate()["validation_loss"]
        except TrainingError:
            return math.inf

    def _step(self, unit: int) -> int:
        return self.steps * unit // UNITS

    def _held_out_losses(self, values: Settings) -> list[float]:
        found = []
        for seed in FRESH_SEEDS:
            trainer = self._build(values, seed, is_held_out=True)
            found.append(self._validated(trainer, UNITS))
            trainer.close()
        return found

    def _price(self, values: Settings) -> float:
        """CPU seconds of a step: the least of a few short stretches, which nothing has held up."""
        trainer = self._build(values, seed=0)
        trainer.run_to(_WARM_STEPS)
        found = []
        for _ in range(_TIMINGS):
            start = time.process_time()
            trainer.run_to(trainer.step + _TIMED_STEPS)
            found.append((time.process_time() - start) / _TIMED_STEPS)
        trainer.close()
        return min(found)

    def _build(self, values: Settings, seed: int, *, is_held_out: bool = False) -> Trainer:
        """A training that is validated, whatever its seed, by the same samples as all others."""
        spec = self._job.spec.with_values(values)
        section = spec.train.model_dump() | {"seed": seed}
        job = self._job.model_copy(update={"spec": spec.with_parts({"train": section})})
        data = self._held_out if is_held_out else self._data
        trainer = Trainer(job, data, self._world, steps=self.steps)
        number = HELD_OUT_SAMPLES if is_held_out else job.spec.train.validate_samples
        trainer.validated_by = self._job.spec.train.model_copy(
            update={"validate_samples": number, "batch": VALIDATION_BATCH}
        )
        return trainer

    def _remember(self, key: str, found: Any) -> None:
        self._known[key] = found
        with self._memo.open("a") as file:
            file.write(json.dumps([key, found]) + "\n")


def _key(values: Settings, seed: int) -> str:
    return json.dumps([dict(values), seed], sort_keys=True)


def _read(memo: Path) -> dict[str, Any]:
    """What is known of each key; a later line says more than an earlier one."""
    if not memo.exists():
        return {}
    return dict(json.loads(line) for line in memo.read_text().splitlines())


@dataclass(frozen=True)
class Ended:
    """A full training of a study: what had been spent by then, its values and its loss."""

    spent_seconds: float
    values: Settings
    loss: float


class Spending:
    """What one tuner spends in one study, and which full trainings it has seen.

    Args:
        trainings: What it may train.
        seed: Of all its trainings.
        budget_seconds: What it has to spend.
    """

    def __init__(self, trainings: Trainings, seed: int, budget_seconds: float = math.inf) -> None:
        self.trainings, self.seed = trainings, seed
        self.budget_seconds, self.spent_seconds = budget_seconds, 0.0
        self.ended: list[Ended] = []
        self.num_begun = 0

    @property
    def is_over(self) -> bool:
        """Whether all is spent; a training under way may go on, but is not seen."""
        return self.spent_seconds >= self.budget_seconds

    def begin(self, values: Settings) -> "Training":
        """A training at step 0."""
        self.num_begun += 1
        return Training(self, values)

    def choices(self) -> list[tuple[float, Settings]]:
        """What would be chosen, from how many spent seconds on: the least loss so far."""
        found: list[tuple[float, Settings]] = []
        best = math.inf
        for one in self.ended:
            if one.loss < best and one.spent_seconds <= self.budget_seconds:
                best = one.loss
                found.append((one.spent_seconds, one.values))
        return found


class Training:
    """One training of a study, paid for as it goes on."""

    def __init__(self, spending: Spending, values: Settings) -> None:
        self._spending, self._values, self._unit = spending, values, 0

    def to(self, unit: int) -> float:
        """Go on to a unit; the loss there."""
        spending, trainings = self._spending, self._spending.trainings
        paid, due = (trainings.seconds(self._values, units) for units in (self._unit, unit))
        spending.spent_seconds += due - paid
        self._unit = unit
        loss = trainings.loss(self._values, spending.seed, unit)
        if unit == UNITS:
            spending.ended.append(Ended(spending.spent_seconds, self._values, loss))
        return loss
