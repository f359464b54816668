"""Evaluate a checkpoint on the test split: its metric with an interval, beside honest baselines.

weights + test split --> per sample scores --> per record sums --> metric and interval
the same records     --> baselines         --> paired gain over each, with its interval
"""

import io
import json
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from millrace import manifest as manifests
from millrace.baselines.comparison import compare
from millrace.confusion import class_facts
from millrace.data.columns import Columns, run_starts
from millrace.data.images import decoded, decoded_bytes
from millrace.data.samples import Samples
from millrace.data.tokenizer import tokenizer_of_shards
from millrace.errors import SpecError, TrainingError
from millrace.intervals import Floats, paired, ratio
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.models.source import source_digest
from millrace.storage import FsspecStorage, StoredFile
from millrace.telemetry import log
from millrace.train.checkpoint import WEIGHTS, load_weights
from millrace.train.objective import build_objective, to_batch
from millrace.train.scores import Objective
from millrace.train.world import World

NOUN = "evaluation"
BATCH_BYTES = 2**18
"""Of samples per forward pass: enough to keep the cores busy, little enough for any network."""


def evaluate(job: Job) -> Manifest:
    """Score the checkpoint and the baselines on every sample of the test split.

    Raises:
        SpecError: The network's code is not the one that was trained.
        TrainingError: The network's scores are not finite.
    """
    storage, world = FsspecStorage(job.store), World.alone()
    shards = manifests.read(storage, job.inputs["shards"])
    checkpoint = manifests.read(storage, job.inputs["checkpoint"])
    _refuse_other_code(job, checkpoint)
    network = build_network(job.spec.network, DataFacts.from_manifest(shards.facts), job.folder)
    load_weights(network, checkpoint.file(WEIGHTS).read(storage))
    objective = build_objective(job.spec.task)
    test = Samples(storage, shards, "test")
    samples = _score(network.to(world.device), objective, test, world)
    if not np.isfinite(samples["loss"]).all():
        raise TrainingError(
            f"evaluate {job.pipeline} on {len(test)} test samples",
            "the network returns NaN or infinite scores",
            "Look at the training's loss curve and lower `train.learning_rate`",
        )
    records = _by_record(samples)
    log(f"{objective.metric}: scored {len(test)} samples of {len(records['weight'])} records")
    train = Samples(storage, shards, "train")
    found = compare(job.spec.task, train, test, tokenizer_of_shards(storage, shards))
    facts = _with_intervals(objective, records, found) | {
        "num_samples": len(test),
        "num_records": len(records["weight"]),
    }
    if "answer" in samples:
        facts |= class_facts(samples["label"], samples["answer"], test.classes)
    return _describe(job, storage, {"shards": shards, "checkpoint": checkpoint}, facts, records)


def _refuse_other_code(job: Job, checkpoint: Manifest) -> None:
    trained, found = checkpoint.facts["code"], source_digest(job.spec.network, job.folder)
    if trained != found:
        raise SpecError(
            f"evaluate {job.pipeline} with the network {job.spec.network.name}",
            f"its code (SHA-256 {found[:12] or 'none'}) is not the one that the checkpoint was "
            f"trained with ({trained[:12] or 'none'})",
            "Materialize the checkpoint again, or put the file back as it was",
        )


def _score(network: nn.Module, objective: Objective, test: Samples, world: World) -> Columns:
    """Per sample: loss and metric sums, weight, its record, and where there are classes two more.

    These are `label` and `answer`.
    """
    network.eval()
    found: defaultdict[str, list[npt.NDArray[Any]]] = defaultdict(list)
    with torch.inference_mode():
        sample_bytes = max(test.sample_bytes, decoded_bytes(test.fields))
        batches = test.batches(max(1, BATCH_BYTES // sample_bytes))
        for columns in decoded(batches, test.fields):
            scores = objective.scores(network, to_batch(columns, world.device))
            found["record"].append(columns["record"])
            found["loss"].append(scores.loss_B.double().cpu().numpy())
            found["metric"].append(scores.metric_B.double().cpu().numpy())
            found["weight"].append(scores.weight_B.double().cpu().numpy())
            if scores.answer_B is not None:
                found["label"].append(columns["label"])
                found["answer"].append(scores.answer_B.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _by_record(samples: Columns) -> dict[str, Floats]:
    """Sums over the samples of each record, records in stored order."""
    starts = run_starts(samples["record"])
    return {name: np.add.reduceat(samples[name], starts) for name in ("loss", "metric", "weight")}


def _with_intervals(
    objective: Objective, records: dict[str, Floats], found: dict[str, Floats]
) -> dict[str, object]:
    """The metric and, for each baseline, its value and the gain over it, all with intervals."""
    sign = 1.0 if objective.higher_is_better else -1.0
    weights = records["weight"]
    return {
        "metric": objective.metric,
        "higher_is_better": objective.higher_is_better,
        "estimate": ratio(records["metric"], weights).to_dict(),
        "loss": ratio(records["loss"], weights).to_dict(),
        "baselines": {
            name: {
                **ratio(sums, weights).to_dict(),
                "gain": paired(sign * (records["metric"] - sums), weights).to_dict(),
            }
            for name, sums in found.items()
        },
    }


def _describe(
    job: Job,
    storage: FsspecStorage,
    inputs: dict[str, Manifest],
    facts: dict[str, object],
    records: dict[str, Floats],
) -> Manifest:
    folder = manifests.folder(job.pipeline, NOUN, job.key)
    buffer = io.BytesIO()
    columns = ("loss", "metric", "weight")
    np.save(buffer, np.stack([records[name] for name in columns], axis=1), allow_pickle=False)
    files = (
        StoredFile.written(storage, f"{folder}/metrics.json", json.dumps(facts, indent=1).encode()),
        StoredFile.written(storage, f"{folder}/records.npy", buffer.getvalue()),
    )
    digests = {noun: made.digest for noun, made in inputs.items()}
    return Manifest(job.pipeline, NOUN, job.key, inputs=digests, files=files, facts=facts)
