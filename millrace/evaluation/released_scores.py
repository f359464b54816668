"""What a release scores on the test split that a checkpoint is evaluated on.

tested on these very shards --> the sums per record that were released with it
on others                   --> its network, rebuilt, scores the test split of today
                            --> or cannot be rebuilt for it: not comparable, and why
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import nn

from millrace.data.samples import Samples
from millrace.data.tokenizer import FILE as TOKENIZER
from millrace.data.tokenizer import tokenizer_of_shards
from millrace.errors import SpecError
from millrace.evaluation.intervals import Floats
from millrace.evaluation.predecessor import RECORDS
from millrace.evaluation.scoring import SUMS, by_record, score
from millrace.frozen import Frozen
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.models.source import source_digest
from millrace.spec import CustomNetwork, Network, Task, has_tokenizer
from millrace.storage import Storage
from millrace.telemetry import log
from millrace.train.checkpoint import WEIGHTS, load_weights
from millrace.train.objective import build_objective

SPEC = "spec.json"


def score_release(
    job: Job, storage: Storage, inputs: Mapping[str, Manifest], test: Samples
) -> tuple[dict[str, Any], Floats | None]:
    """How the release stands to the checkpoint, and what its metric adds up to on each test record.

    Args:
        job: The evaluation's.
        storage: The store.
        inputs: Of the evaluation; `release` is the predecessor, if there is one.
        test: The test split.
    """
    release, shards = inputs.get("release"), inputs["shards"]
    if release is None:
        return {"standing": "none"}, None
    told = {"manifest": release.path, "digest": release.digest}
    if release.inputs["checkpoint"] == inputs["checkpoint"].digest:
        return {"standing": "same", **told}, None
    objective = build_objective(job.spec.task)
    kept = _kept_sums(storage, release) if release.inputs["shards"] == shards.digest else None
    if kept is not None and release.facts["metric"] == objective.metric:
        return {"standing": "compared", **told}, kept
    try:
        network = _rebuild(job, storage, release, shards)
        found = by_record(score(network, objective, test))["metric"]
        if not np.isfinite(found).all():
            raise IncomparableError("its scores are not finite")  # noqa: TRY301  one way to tell
    except IncomparableError as error:
        log(f"the release {release.digest[:12]} is not comparable: {error}")
        return {"standing": "not comparable", **told, "reason": str(error)}, None
    log(f"scored the release {release.digest[:12]} on the same samples")
    return {"standing": "compared", **told}, found


def _kept_sums(storage: Storage, release: Manifest) -> Floats | None:
    """What its metric added up to on each record when it was released, if that was kept."""
    for file in release.files:
        if file.path.endswith(f"/{RECORDS}"):
            columns: Floats = np.load(io.BytesIO(file.read(storage)), allow_pickle=False)
            return columns[:, SUMS.index("metric")]
    return None


class IncomparableError(Exception):
    """A release cannot be scored on the current test split; the message says why."""


class _Described(Frozen):
    """The part of a release's spec.json that a comparison needs."""

    network: Network
    code: str
    task: Task
    classes: list[str]
    facts: dict[str, Any]


def _rebuild(job: Job, storage: Storage, release: Manifest, shards: Manifest) -> nn.Module:
    """The released network with its weights, fit for the current test split.

    Raises:
        IncomparableError: The release is of another task, other classes, another tokenizer or
            another version of the user's code.
    """
    spec = json.loads(release.file(SPEC).read(storage))
    try:
        described = _Described.model_validate(
            {name: spec[name] for name in _Described.model_fields}
        )
    except (KeyError, ValidationError) as error:
        raise IncomparableError("its spec is of another version of Millrace") from error
    _refuse_other_task(job, described, shards)
    if has_tokenizer(job.spec.task):
        encoded = release.file(TOKENIZER).read(storage)
        if encoded != tokenizer_of_shards(storage, shards):
            raise IncomparableError("texts are encoded by another tokenizer since")
    _refuse_other_code(job, described)
    try:
        facts = DataFacts.from_dict(described.facts)
        network = build_network(described.network, facts, job.folder)
        load_weights(network, release.file(WEIGHTS).read(storage))
    except (SpecError, RuntimeError) as error:  # the latter where weights do not fit
        raise IncomparableError(f"its network cannot be rebuilt: {error}") from error
    return network


def _refuse_other_task(job: Job, described: _Described, shards: Manifest) -> None:
    released, asked = described.task.model_dump(), job.spec.task.model_dump()
    names = sorted(name for name in released | asked if released.get(name) != asked.get(name))
    if names:
        raise IncomparableError(f"its task differs in {', '.join(names)}")
    if described.classes != list(shards.facts["classes"]):
        told = sorted(set(described.classes) ^ set(shards.facts["classes"]))
        raise IncomparableError(f"its classes differ: {', '.join(told)}")


def _refuse_other_code(job: Job, described: _Described) -> None:
    """The user's code is never run from the store: only her own file, if it is the released one."""
    network = described.network
    try:
        found = source_digest(network, job.folder)
    except SpecError:
        found = "gone"
    if found != described.code:
        what = f"file {network.file_name}" if isinstance(network, CustomNetwork) else "model"
        raise IncomparableError(f"its network's {what} was changed or removed since")
