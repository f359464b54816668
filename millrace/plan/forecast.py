"""The plan: what study and training will take, from what is known or else tried for a moment.

the last plan's evidence, if nothing that it depends on has changed --> the same
none --> a probe of the real training loop --> evidence
evidence + history on the store --> outlook --> the manifest
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from millrace import manifest as manifests
from millrace.cost import Prices
from millrace.errors import NotFoundError, SpecError
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.plan.evidence import Evidence, evidence_key, from_run
from millrace.plan.history import Entry, read_quietly
from millrace.plan.outlook import Outlook, Past, foresee
from millrace.plan.words import in_words
from millrace.spec import TrainSpec
from millrace.storage import FsspecStorage, Storage
from millrace.telemetry import log

NOUN = "plan"
PRICE_FILE = Path(__file__).parents[2] / "resources" / "prices.yaml"


def forecast(job: Job) -> Manifest:
    """Plan the study and the training of a job; the manifest's `measured` holds the plan."""
    storage = FsspecStorage(job.store)
    shards = manifests.read(storage, job.inputs["shards"])
    evidence, outlook = plan(job, storage, shards, deadline_hours(job.spec.train))
    log(in_words(outlook))
    train = job.spec.train
    facts = {
        "parameters": evidence.work.parameters,
        "steps": train.steps,
        "batch": train.batch,
        "ranks": train.ranks,
    }
    return Manifest(
        job.pipeline,
        NOUN,
        job.key,
        inputs={"shards": shards.digest},
        facts=facts,
        measured={"evidence": evidence.model_dump(), "outlook": outlook.model_dump()},
    )


def plan(
    job: Job,
    storage: Storage,
    shards: Manifest,
    deadline_hours: float = math.inf,
    *,
    may_probe: bool = True,
) -> tuple[Evidence, Outlook]:
    """Evidence and outlook of a job.

    Raises:
        SpecError: Nothing is known of this training, and it may not be tried.
    """
    num_cores = os.cpu_count() or 1
    prices = Prices.read(Path(job.price_file) if job.price_file else PRICE_FILE)
    past = Past(
        read_quietly(storage, job.pipeline, "checkpoint"),
        read_quietly(storage, job.pipeline, "study"),
    )
    key = evidence_key(job, shards, num_cores)
    evidence = _known(storage, job.pipeline, key)
    if evidence is None and may_probe:
        # Imported here: it loads torch, which a plan from what is known can do without.
        from millrace.plan.probe import probe  # noqa: PLC0415

        evidence = probe(job, storage)
    evidence = evidence or _of_last_run(job, key, past.trainings)
    found = foresee(job.spec, evidence, past, prices, job.machine, num_cores, deadline_hours)
    return evidence, found


def deadline_hours(train: TrainSpec) -> float:
    """The deadline that a spec sets: `max_hours`; infinite without."""
    return math.inf if train.max_hours == "none" else train.max_hours


def _known(storage: Storage, pipeline: str, key: str) -> Evidence | None:
    """The last plan's evidence, where it is of this very training on such a machine."""
    try:
        last = manifests.current(storage, pipeline, NOUN)
    except NotFoundError:
        return None
    try:
        evidence = Evidence.model_validate(last.measured["evidence"])
    except ValidationError:  # another version's
        return None
    return evidence if evidence.key == key else None


def _of_last_run(job: Job, key: str, trainings: Sequence[Entry]) -> Evidence:
    for entry in reversed(trainings):
        if entry.work is not None:
            return from_run(key, entry.work, job.spec)
    raise SpecError(
        f"plan {job.pipeline} without a probe",
        "no plan and no training of it is recorded on the store",
        "Leave out --no-probe: the probe takes a few seconds",
    )
