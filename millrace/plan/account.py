"""The account: what each step took against its prediction, what quality cost, what to change."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from millrace import manifest as manifests
from millrace.cost import StoragePrice, Traffic, storage_bill
from millrace.data.bill import expected_reads
from millrace.data.order import CHUNK_BYTES
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.plan import history
from millrace.plan.bottleneck import Saving, savings, sentence, shares
from millrace.plan.fit import Run, learn
from millrace.plan.history import Entry
from millrace.plan.outlook import Outlook
from millrace.plan.quality import QualityPrice, price_quality
from millrace.plan.stages import NOUNS
from millrace.plan.time_model import Constants, default_constants
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage

NOUN = "cost"
CALIBRATED = ("study", "checkpoint")
"""Nouns whose predictions over the last runs are shown."""


def account(job: Job) -> Manifest:
    """Compare the pipeline's current things with what was predicted of them."""
    storage = FsspecStorage(job.store)
    found = {noun: manifests.read(storage, path) for noun, path in job.inputs.items()}
    made = {noun: found[noun] for noun in NOUNS if noun in found}
    entries = {noun: history.of_manifest(storage, one) for noun, one in made.items()}
    past = {noun: history.read_quietly(storage, job.pipeline, noun) for noun in CALIBRATED}
    stages = {noun: _stage(one, entries[noun]) for noun, one in made.items()}
    return Manifest(
        job.pipeline,
        NOUN,
        job.key,
        inputs={noun: one.digest for noun, one in made.items()},
        facts={"stages": list(made)},
        measured={
            "stages": stages,
            "calibration": {noun: calibration(told) for noun, told in past.items()},
            "storage": _storage(made, job.spec, job.storage_price),
            "months_kept": job.storage_price.months_kept,
            **_judged(job, made, entries["checkpoint"], past["checkpoint"]),
        },
    )


def _judged(
    job: Job, made: Mapping[str, Manifest], told: Entry | None, past: Sequence[Entry]
) -> dict[str, Any]:
    """Where the time went, what would save some of it, and what quality cost."""
    run = told.run if told is not None else None
    constants = _constants(past, run, job.machine)
    spent = shares(made, run, constants, told.outside_seconds if told is not None else 0.0)
    spec = _trained(job.spec, made["checkpoint"])
    price, cores = job.usd_per_hour, os.cpu_count() or 1
    changes = savings(spec, made["study"], run, constants, job.mtbf_hours, price, cores)
    changes = sorted([*changes, *_elsewhere(made)], key=lambda saving: -saving.usd)
    total_usd = math.fsum(one.usd for one in made.values())
    quality = _quality(made, run, price, total_usd)
    return {
        "spent": spent,
        "savings": [asdict(saving) for saving in changes],
        "bottleneck": sentence(spent, changes, total_usd),
        "quality": quality.model_dump() if quality is not None else {},
    }


def _stage(made: Manifest, entry: Entry | None) -> dict[str, Any]:
    """Actual and predicted seconds and dollars of one noun."""
    told: dict[str, Any] = {"seconds": made.seconds, "usd": made.usd}
    if entry is not None:
        told["outside_seconds"] = entry.outside_seconds
        told["joules"] = entry.joules
        if entry.predicted is not None:
            told["predicted"] = entry.predicted.model_dump()
            told["predicted_usd"] = entry.predicted.value / 3600 * entry.usd_per_hour
            told["held"] = entry.predicted.holds(entry.seconds)
    return told


def calibration(entries: Sequence[Entry]) -> dict[str, Any]:
    """How the predictions of earlier runs turned out: ratios of actual to predicted seconds."""
    told = [(r.seconds, r.predicted) for r in entries if r.predicted is not None and r.seconds]
    return {
        "ratios": [seconds / predicted.value for seconds, predicted in told],
        "lows": [predicted.low / predicted.value for _, predicted in told],
        "highs": [predicted.high / predicted.value for _, predicted in told],
        "num_held": sum(predicted.holds(seconds) for seconds, predicted in told),
    }


def _constants(past: Sequence[Entry], run: Run | None, machine: str) -> Constants:
    device = run.work.device if run is not None else "cpu"
    return learn(history.runs_of(past, machine, device), default_constants(device))


def _trained(spec: PipelineSpec, checkpoint: Manifest) -> PipelineSpec:
    """The spec that the checkpoint was trained with; its facts leave out what changes no weight."""
    train = spec.train.model_dump() | checkpoint.facts["train"]
    return spec.with_parts({"network": checkpoint.facts["network"], "train": train})


def _elsewhere(made: Mapping[str, Manifest]) -> list[Saving]:
    """What the plan's choice would save over the machine that it was made on."""
    if "plan" not in made:
        return []
    outlook = Outlook.model_validate(made["plan"].measured["outlook"])
    best = next((one for one in outlook.options if one.name == outlook.chosen), outlook.here)
    saved = outlook.here.usd.value - best.usd.value
    if saved <= 0:
        return []
    seconds = outlook.here.seconds.value - best.seconds.value
    return [Saving(f"running on {best.name} ({best.basis})", saved, max(0.0, seconds))]


def _quality(
    made: Mapping[str, Manifest], run: Run | None, usd_per_hour: float, total_usd: float
) -> QualityPrice | None:
    if "evaluation" not in made:
        return None
    checkpoint = made["checkpoint"]
    steps = checkpoint.facts["steps"]
    seconds = run.timing.loop_seconds if run is not None else checkpoint.seconds
    each = seconds / steps / 3600 * usd_per_hour
    return price_quality(made["evaluation"].facts, checkpoint.facts["curve"], total_usd, each)


def _storage(
    made: Mapping[str, Manifest], spec: PipelineSpec, price: StoragePrice
) -> dict[str, dict[str, float]]:
    """Dollars by noun for what lies on the store and moves to and from it, by its prices.

    Modelled, not counted: each file and manifest is written once; the study and the training read
    the train split from the store as often as they take its samples, each rank's cache apart.
    """
    bills = {}
    for noun, one in made.items():
        num_writes = len(one.files) + 2  # the manifest and the pointer to it
        read_bytes = num_reads = 0.0
        if noun == "shards":
            split = one.facts["splits"]["train"]
            reads = expected_reads(spec, split["num_samples"])
            read_bytes = reads * split["num_bytes"]
            num_reads = reads * split["raw_bytes"] / CHUNK_BYTES
        traffic = Traffic(one.num_bytes, num_writes, read_bytes, num_reads)
        bill = storage_bill(traffic, price)
        bills[noun] = {**asdict(bill), "total": bill.total}
    return bills
