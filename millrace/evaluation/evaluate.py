"""Evaluate a checkpoint on the test split: intervals, slices, baselines and the release beside it.

weights + test split  --> per sample scores --> per record sums --> metric and interval
the same records      --> baselines         --> paired gain over each, with its interval
the released weights  --> the same          --> paired gain over the release
each slice of records --> metric and gain over the release, corrected for their number
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from millrace import manifest as manifests
from millrace.baselines.comparison import compare
from millrace.data.columns import Columns, run_starts
from millrace.data.properties import Properties
from millrace.data.samples import Samples
from millrace.data.tokenizer import tokenizer_of_shards
from millrace.errors import SpecError, TrainingError
from millrace.evaluation.intervals import Floats, ratio
from millrace.evaluation.origins import Origins
from millrace.evaluation.predecessor import METRICS, RECORDS
from millrace.evaluation.quality import (
    Measured,
    choose_clusters,
    further_facts,
    judge_slices,
)
from millrace.evaluation.released_scores import score_release
from millrace.evaluation.scoring import SUMS, by_record, score
from millrace.evaluation.slices import Slices, by_class, by_folder, by_length, by_name, by_source
from millrace.evaluation.worst import worst_samples
from millrace.gates import FIELD
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.models.source import source_digest
from millrace.spec import LanguageModelTask
from millrace.storage import FsspecStorage, Storage, StoredFile
from millrace.telemetry import log
from millrace.train.checkpoint import WEIGHTS, load_weights
from millrace.train.objective import build_objective

NOUN = "evaluation"
INPUTS = ("source_files", "shards", "checkpoint", "release")
"""The last one only where there is a release before this checkpoint."""


def evaluate(job: Job) -> Manifest:
    """Score the checkpoint, the baselines and the release on every sample of the test split.

    Raises:
        SpecError: The network's code is not the one that was trained.
        TrainingError: The network's scores are not finite.
    """
    storage = FsspecStorage(job.store)
    inputs = {
        noun: manifests.read(storage, job.inputs[noun]) for noun in INPUTS if noun in job.inputs
    }
    shards, checkpoint = inputs["shards"], inputs["checkpoint"]
    _refuse_other_code(job, checkpoint)
    network = build_network(job.spec.network, DataFacts.from_manifest(shards.facts), job.folder)
    load_weights(network, checkpoint.file(WEIGHTS).read(storage))
    objective, test = build_objective(job.spec.task), Samples(storage, shards, "test")
    samples = score(network, objective, test)
    if not np.isfinite(samples["loss"]).all():
        raise TrainingError(
            f"evaluate {job.pipeline} on {len(test)} test samples",
            "the network returns NaN or infinite scores",
            "Look at the training's loss curve and lower `train.learning_rate`",
        )
    records, starts = by_record(samples), run_starts(samples["record"])
    log(f"{objective.metric}: scored {len(test)} samples of {len(starts)} records")
    origins = Origins.find(storage, inputs["source_files"], samples["record"][starts])
    clusters, drawn = choose_clusters(origins.file)
    measured = Measured(records["metric"], records["weight"], objective.higher_is_better, clusters)
    properties = Properties.load(storage, inputs["source_files"])
    slicings = _divide(job, samples, test.classes, origins, properties)
    release, released = score_release(job, storage, inputs, test)
    estimate = measured.estimate()
    facts = {
        "metric": objective.metric,
        "higher_is_better": objective.higher_is_better,
        "num_samples": len(test),
        "num_records": len(starts),
        **drawn,
        "estimate": estimate.to_dict(),
        "loss": ratio(records["loss"], records["weight"], clusters).to_dict(),
        "baselines": _baselines(job, storage, shards, test, measured),
        "release": release | ({} if released is None else measured.compared(released)),
        "slices": judge_slices(slicings, measured, released),
        "worst": worst_samples(
            samples, test, origins, job.spec.task, tokenizer_of_shards(storage, shards)
        ),
        **further_facts(objective.metric, estimate.value, samples, test.classes),
    }
    return _describe(job, storage, inputs, facts, records)


def _refuse_other_code(job: Job, checkpoint: Manifest) -> None:
    trained, found = checkpoint.facts["code"], source_digest(job.spec.network, job.folder)
    if trained != found:
        raise SpecError(
            f"evaluate {job.pipeline} with the network {job.spec.network.name}",
            f"its code (SHA-256 {found[:12] or 'none'}) is not the one that the checkpoint was "
            f"trained with ({trained[:12] or 'none'})",
            "Materialize the checkpoint again, or put the file back as it was",
        )


def _baselines(
    job: Job, storage: Storage, shards: Manifest, test: Samples, measured: Measured
) -> dict[str, Any]:
    """The baselines on the same records, by name."""
    train, tokenizer = Samples(storage, shards, "train"), tokenizer_of_shards(storage, shards)
    found = compare(job.spec.task, train, test, tokenizer)
    return {name: measured.compared(sums) for name, sums in found.items()}


def _divide(
    job: Job, samples: Columns, classes: Sequence[str], origins: Origins, properties: Properties
) -> dict[str, Slices]:
    """The test records divided by each property that the gate names."""
    starts, task, gate = run_starts(samples["record"]), job.spec.task, job.spec.gate
    found: dict[str, Slices] = {}
    for slicing in gate.slicings:
        match slicing:
            case "class":
                found[slicing] = by_class(samples["label"][starts], classes)
            case "folder":
                found[slicing] = by_folder(origins)
            case "source":
                found[slicing] = by_source(origins)
            case "length":
                lengths = np.add.reduceat(samples["length"].astype(np.int64), starts)
                is_ids = isinstance(task, LanguageModelTask) and task.reads_ids
                found[slicing] = by_length(lengths, "ids" if is_ids else "bytes")
            case field:
                number = gate.fields.index(field.removeprefix(FIELD))
                of_record = properties.numbers[origins.row, number]
                found[slicing] = by_name(properties.values[number], of_record)
    return found


def _describe(
    job: Job,
    storage: Storage,
    inputs: Mapping[str, Manifest],
    facts: dict[str, Any],
    records: Mapping[str, Floats],
) -> Manifest:
    folder = manifests.folder(job.pipeline, NOUN, job.key)
    buffer = io.BytesIO()
    np.save(buffer, np.stack([records[name] for name in SUMS], axis=1), allow_pickle=False)
    files = (
        StoredFile.written(storage, f"{folder}/{METRICS}", json.dumps(facts, indent=1).encode()),
        StoredFile.written(storage, f"{folder}/{RECORDS}", buffer.getvalue()),
    )
    digests = {noun: made.digest for noun, made in inputs.items()}
    return Manifest(job.pipeline, NOUN, job.key, inputs=digests, files=files, facts=facts)
