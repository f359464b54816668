"""A case of the quality benchmark, and the way through the product that all of them take."""

import resource
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from millrace import manifest as manifests
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.frozen import digest
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage
from millrace.train.loop import Trainer, TrainingData
from millrace.train.objective import build_objective, to_batch
from millrace.train.world import World


@dataclass(frozen=True)
class Outcome:
    """What one training reached and took."""

    quality: float
    cpu_seconds: float
    """User and system time of the process, from building the network to the last update."""


@dataclass(frozen=True)
class Case:
    """A data set, how it is learned, and the bar."""

    what: str
    """The measure and on which records."""
    bar: float
    is_ceiling: bool
    """Whether lower is better."""
    cpu_seconds: float
    """Of one core, that the training may take."""
    run: Callable[[Path, Path, int], Outcome]
    """Of the data set's folder, a scratch folder and a seed."""
    notes: str
    """How the data is split and what is trained, in Markdown."""
    known: Mapping[str, float] = field(default_factory=dict)
    """What others reach, by name; published or simple."""


def packed(spec: Mapping[str, Any], folder: Path) -> tuple[Job, TrainingData]:
    """The pipeline's source files, below `folder`, packed by the product's own steps."""
    job, shards = packed_shards(spec, folder)
    return job, TrainingData.load(FsspecStorage(job.store), shards, job.spec.train.mix)


def packed_shards(spec: Mapping[str, Any], folder: Path) -> tuple[Job, Manifest]:
    """The same, as the manifest of all splits."""
    checked = PipelineSpec.model_validate(spec)
    storage = FsspecStorage(str(folder / "store"))
    job = Job(
        pipeline="quality",
        folder=str(folder),
        spec=checked,
        store=str(folder / "store"),
        work=str(folder / "work"),
    )
    source = manifests.publish(storage, ingest(job))
    update = {"inputs": {"source_files": source.path}, "key": digest("shards", source.digest)}
    return job, manifests.publish(storage, pack(job.model_copy(update=update)))


def train(job: Job, data: TrainingData, seed: int) -> tuple[nn.Module, float]:
    """The network after `train.steps` on one core, and the CPU seconds that took."""
    section = job.spec.train.model_dump() | {"seed": seed, "ranks": 1}
    seeded = job.model_copy(update={"spec": job.spec.with_parts({"train": section})})
    world = World.alone(threads=1)
    start = _cpu_seconds()
    with closing(Trainer(seeded, data, world)) as trainer:
        trainer.run_to(trainer.steps)
        return trainer.network.eval(), _cpu_seconds() - start


def score(job: Job, data: TrainingData, network: nn.Module) -> float:
    """The task's metric on the whole validation split, which `train` does not look at."""
    objective = build_objective(job.spec.task)
    metric, weight = 0.0, 0.0
    with torch.inference_mode():
        for columns in data.validation.batches(256):
            scores = objective.scores(network, to_batch(columns, torch.device("cpu")))
            metric += scores.metric_B.double().sum().item()
            weight += scores.weight_B.double().sum().item()
    return metric / weight


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
