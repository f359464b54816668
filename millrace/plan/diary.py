"""The diary of a step: what is expected of it before it runs, and its entry afterwards."""

import time

from pydantic import ValidationError

from millrace import manifest as manifests
from millrace.errors import MillraceError, NotFoundError
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.plan import history
from millrace.plan.energy import EnergyMeter
from millrace.plan.outlook import Outlook
from millrace.plan.spread import Interval
from millrace.plan.stages import SIZED_BY, predict_step, size_of
from millrace.storage import Storage
from millrace.telemetry import emit, log

NOUN_OF_VERB = {
    "ingest": "source_files", "learn": "tokenizer", "pack": "shards", "forecast": "plan",
    "tune": "study", "train": "checkpoint", "evaluate": "evaluation", "release": "release",
    "account": "cost",
}  # fmt: skip
_FORESEEN = {"study": "study", "checkpoint": "training"}


class Diary:
    """One step of a pipeline from before its work to its entry.

    Nothing hangs on it: where the store does not answer, there is no prediction and no entry.

    Args:
        storage: The store.
        job: The step's.
        verb: What the engine calls it; what makes no noun of a pipeline leaves no entry.
    """

    def __init__(self, storage: Storage, job: Job, verb: str) -> None:
        self._storage, self._job = storage, job
        self._noun = NOUN_OF_VERB.get(verb, "")
        self._size = 1.0
        self._expected: Interval | None = None
        if self._noun:
            self._expect()
            self._meter, self._started = EnergyMeter(), time.perf_counter()

    def keep(self, made: Manifest, seconds: float) -> None:
        """Write the entry of what was made.

        Args:
            made: As it is published.
            seconds: Of this process.
        """
        entry = history.entry_of(
            made,
            machine=self._job.machine,
            usd_per_hour=self._job.usd_per_hour,
            predicted=self._expected,
            size=self._size,
            outside_seconds=max(0.0, seconds - made.seconds),
            joules=self._meter.joules(),
        )
        try:
            history.write(self._storage, entry)
        except MillraceError as error:
            log(f"this run is not recorded: {error}")

    def keep_published(self, seconds: float) -> None:
        """The same of what another process has published under the job's key."""
        folder = manifests.folder(self._job.pipeline, self._noun, self._job.key)
        try:
            made = manifests.read(self._storage, f"{folder}/manifest.json")
        except MillraceError as error:
            log(f"this run is not recorded: {error}")
        else:
            self.keep(made, seconds)

    def _expect(self) -> None:
        try:
            self._size, self._expected = self._predict()
        except (MillraceError, ValidationError, KeyError) as error:
            log(f"what this step will take is not predicted: {error}")
        if (found := self._expected) is not None:
            emit("expected", seconds=found.value, low=found.low, high=found.high)

    def _predict(self) -> tuple[float, Interval | None]:
        """What the step works on, and the seconds that it is expected to take."""
        job, noun = self._job, self._noun
        inputs = {}
        if (source := SIZED_BY.get(noun, "")) in job.inputs:
            inputs[source] = manifests.read(self._storage, job.inputs[source])
        size = size_of(noun, job.spec, inputs)
        if noun in _FORESEEN and (outlook := self._outlook()) is not None:
            found: Interval = getattr(outlook, _FORESEEN[noun])
            return size, found
        entries = history.newest(self._storage, job.pipeline, noun)
        return size, predict_step(entries, size, job.machine)

    def _outlook(self) -> Outlook | None:
        """The current plan's, if it is of the same shards."""
        try:
            plan = manifests.current(self._storage, self._job.pipeline, "plan")
        except NotFoundError:
            return None
        shards = manifests.read(self._storage, self._job.inputs["shards"])
        if plan.inputs.get("shards") != shards.digest:
            return None
        outlook = Outlook.model_validate(plan.measured["outlook"])
        return outlook if outlook.machine == self._job.machine else None
