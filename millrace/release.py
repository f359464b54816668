"""Release a checkpoint: gate it, publish an immutable folder, try it before anyone relies on it.

<pipeline>/release/<key>/{weights.safetensors, spec.json, metrics.json, records.npy,
                          MODEL_CARD.md}
                         and the user's own network file and tokenizer.json, where there are
"""

import json

import numpy as np
import torch

from millrace import manifest as manifests
from millrace.data.images import decoded
from millrace.data.samples import Samples
from millrace.data.tokenizer import FILE as TOKENIZER
from millrace.data.tokenizer import tokenizer_of_shards
from millrace.errors import GateError, TrainingError
from millrace.evaluation.gate import Outcome, Verdict, decide
from millrace.evaluation.predecessor import METRICS, NOUN, RECORDS
from millrace.evaluation.released_scores import SPEC
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.models.source import source_digest, source_path
from millrace.spec import CustomNetwork
from millrace.storage import FsspecStorage, StoredFile
from millrace.telemetry import log
from millrace.train.checkpoint import WEIGHTS, load_weights
from millrace.train.objective import build_objective, to_batch

CARD = "MODEL_CARD.md"
TRIED_SAMPLES = 8


def release(job: Job) -> Manifest:
    """Verify the gate on the published evaluation, write the release and try it.

    Raises:
        GateError: The verdict is fail or cannot tell, or the evaluation is of another checkpoint.
        TrainingError: The written release does not answer.
    """
    storage = FsspecStorage(job.store)
    shards = manifests.read(storage, job.inputs["shards"])
    checkpoint = manifests.read(storage, job.inputs["checkpoint"])
    evaluation = manifests.read(storage, job.inputs["evaluation"])
    verdict = _verify(job, shards, checkpoint, evaluation)
    folder = manifests.folder(job.pipeline, NOUN, job.key)
    facts = DataFacts.from_manifest(shards.facts)
    described = {
        "pipeline": job.pipeline,
        "network": job.spec.network.model_dump(),
        "code": checkpoint.facts["code"],
        "task": job.spec.task.model_dump(),
        "source": job.spec.source.model_dump(),
        "train": job.spec.train.model_dump(),
        "facts": facts.to_dict(),
        "classes": shards.facts["classes"],
        "made_from": {
            "shards": shards.digest,
            "checkpoint": checkpoint.digest,
            "evaluation": evaluation.digest,
        },
    }
    contents = {
        WEIGHTS: checkpoint.file(WEIGHTS).read(storage),
        SPEC: json.dumps(described, indent=1).encode(),
        METRICS: evaluation.file(METRICS).read(storage),
        RECORDS: evaluation.file(RECORDS).read(storage),
        CARD: _model_card(job, shards, checkpoint, evaluation, verdict).encode(),
    }
    if tokenizer := tokenizer_of_shards(storage, shards):
        contents[TOKENIZER] = tokenizer
    if isinstance(job.spec.network, CustomNetwork):
        source = source_path(job.spec.network, job.folder)
        contents[source.name] = source.read_bytes()
    files = {
        name: StoredFile.written(storage, f"{folder}/{name}", data)
        for name, data in contents.items()
    }
    _try(job, storage, files[WEIGHTS], facts, Samples(storage, shards, "test"))
    log(f"released {folder}")
    estimate = evaluation.facts["estimate"]
    return Manifest(
        job.pipeline,
        NOUN,
        job.key,
        inputs=described["made_from"],
        files=tuple(files.values()),
        facts={"metric": evaluation.facts["metric"], "estimate": estimate, "verdict": str(verdict)},
    )


def _verify(job: Job, shards: Manifest, checkpoint: Manifest, evaluation: Manifest) -> Verdict:
    asked = f"release the checkpoint {checkpoint.digest[:12]} of {job.pipeline}"
    if evaluation.inputs["checkpoint"] != checkpoint.digest:
        raise GateError(
            asked,
            f"the evaluation is of checkpoint {evaluation.inputs['checkpoint'][:12]}",
            f"Materialize {job.pipeline}/evaluation first",
        )
    if evaluation.inputs["shards"] != shards.digest or checkpoint.inputs["shards"] != shards.digest:
        raise GateError(
            asked,
            "checkpoint, evaluation and shards were not made from each other",
            f"Materialize {job.pipeline} as a whole",
        )
    if checkpoint.facts["code"] != source_digest(job.spec.network, job.folder):
        raise GateError(
            asked,
            f"{job.spec.network.name} was changed after the training",
            f"Materialize {job.pipeline}/checkpoint again, or restore the file",
        )
    verdict = decide(job.spec.gate, evaluation.facts)
    if verdict.outcome is not Outcome.PASS:
        raise GateError(
            asked,
            f"the gate says {verdict}",
            "Train longer, gather more test records, or change `gate`; the last release stays",
        )
    return verdict


def _try(
    job: Job, storage: FsspecStorage, weights: StoredFile, facts: DataFacts, test: Samples
) -> None:
    """Load what was written, as a user of the release would, and score a few test samples."""
    network = build_network(job.spec.network, facts, job.folder)
    load_weights(network, weights.read(storage))
    network.eval()
    columns = next(decoded(test.batches(TRIED_SAMPLES), test.fields))
    with torch.inference_mode():
        scores = build_objective(job.spec.task).scores(
            network, to_batch(columns, torch.device("cpu"))
        )
    if not np.isfinite(scores.loss_B.numpy()).all():
        raise TrainingError(
            f"try the release of {job.pipeline}",
            "it answers with NaN or infinity",
            "Materialize the checkpoint again; if it happens twice, report it",
        )


def _model_card(
    job: Job, shards: Manifest, checkpoint: Manifest, evaluation: Manifest, verdict: Verdict
) -> str:
    """What a stranger must know before relying on the model, in Markdown."""
    found, train = evaluation.facts, checkpoint.facts
    estimate, splits = found["estimate"], shards.facts["splits"]
    others = found["baselines"] | (
        {"the release before": found["release"]} if "gain" in found["release"] else {}
    )
    rows = [f"| **this model** | **{_span(estimate)}** | |"] + [
        f"| {name} | {_span(value)} | {_span(value['gain'])} |" for name, value in others.items()
    ]
    counts = ", ".join(f"{value['num_records']} {name}" for name, value in splits.items())
    arrow = "higher" if found["higher_is_better"] else "lower"
    return "\n".join(
        [
            f"# {job.pipeline}",
            "",
            job.spec.description or "(no description)",
            "",
            f"- Task: {job.spec.task.kind}; network: {job.spec.network.name}, "
            f"{train['parameters']:,} parameters",
            f"- Data: {job.spec.source.place}; records: {counts}; "
            f"{shards.facts['num_duplicates']} duplicates dropped",
            f"- Training: {train['steps']} steps of {job.spec.train.batch} samples, "
            f"learning rate {job.spec.train.learning_rate:g}, seed {job.spec.train.seed}"
            + (f"; of {job.spec.train.mixture}" if job.spec.train.mix else ""),
            f"- Gate: {verdict}",
            "",
            f"## {found['metric']} on {found['num_records']} held-out records ({arrow} is better)",
            "",
            f"95 % intervals by bootstrap over {found['drawn']}.",
            "",
            f"| | {found['metric']} | gain of this model |",
            "|---|---|---|",
            *rows,
            "",
            "## Limits",
            "",
            "Measured on records drawn from the same source as the training records; nothing is "
            "known of others. Exact duplicates cannot stand in two splits; near duplicates can.",
            "",
        ]
    )


def _span(value: dict[str, float]) -> str:
    return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
