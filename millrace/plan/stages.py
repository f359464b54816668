"""Seconds of the steps without a time model, by what they work on and what earlier runs took."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from millrace.data.bill import num_samples_taken
from millrace.manifest import Manifest
from millrace.plan.fit import fit
from millrace.plan.history import Entry
from millrace.plan.spread import Interval, spread
from millrace.spec import PipelineSpec

NOUNS = (
    "source_files", "tokenizer", "shards", "plan", "study", "checkpoint", "evaluation", "release",
    "cost",
)  # fmt: skip
"""In the order of the line."""


SIZED_BY = {
    "tokenizer": "source_files", "shards": "source_files", "evaluation": "shards",
    "release": "checkpoint",
}  # fmt: skip
"""Noun to the one among its inputs that tells its size."""


def size_of(noun: str, spec: PipelineSpec, inputs: Mapping[str, Manifest]) -> float:
    """What a step's seconds grow with: bytes for what reads, samples for what computes.

    1 where nothing that is known beforehand tells: the source files before they are listed, and
    what takes the same whatever there is.

    Args:
        noun: What is made.
        spec: Its pipeline.
        inputs: What it is made from, or at least `SIZED_BY[noun]`.
    """
    if noun == "study":
        return num_samples_taken(spec) - spec.train.batch * spec.train.steps
    if noun == "checkpoint":
        return float(spec.train.batch * spec.train.steps)
    source = inputs.get(SIZED_BY.get(noun, ""))
    if source is None:
        return 1.0
    if source.noun == "source_files":
        return float(source.facts["num_bytes"])
    if source.noun == "shards":
        return float(source.facts["splits"]["test"]["num_samples"])
    return float(source.num_bytes)


def predict_step(entries: Sequence[Entry], size: float, machine: str) -> Interval | None:
    """Seconds of a step of this size, from earlier runs on this kind of machine; None without any.

    A part that is always the same and a part that grows with the size, both from the runs; a prior
    of little weight halves the mean run between them.
    """
    known = [r for r in entries if r.machine == machine and r.seconds > 0 and r.size > 0]
    if not known:
        return None
    value = _predict(known, size)
    errors = [
        math.log(entry.seconds / _predict([*known[:i], *known[i + 1 :]], entry.size))
        for i, entry in enumerate(known)
        if len(known) > 1
    ]
    return spread(value, errors)


def _predict(entries: Sequence[Entry], size: float) -> float:
    sizes = np.array([entry.size for entry in entries])
    seconds = np.array([entry.seconds for entry in entries])
    prior = np.array([seconds.mean() / 2, seconds.mean() / 2 / sizes.mean()])
    fixed, each = fit(np.stack([np.ones(len(sizes)), sizes], axis=1), seconds, prior)
    return float(fixed + each * size)
