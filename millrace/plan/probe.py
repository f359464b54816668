"""A probe of a training: twenty steps of the real loop on the real shards, on one rank.

Alone on the machine it is a little faster than ranks beside each other: runs that are recorded
later correct what is predicted from it.
"""

import os
import resource
import sys
import time
from contextlib import closing

import torch

from millrace import manifest as manifests
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.build import build_network
from millrace.plan.evidence import Evidence, evidence_key, extremes
from millrace.plan.fit import Run
from millrace.storage import Storage
from millrace.train.loop import Trainer, TrainingData
from millrace.train.probe import Probe
from millrace.train.quantities import Looked, work_of
from millrace.train.world import World, choose_device, num_threads
from millrace.work import Timing, Work

WARM_UP_STEPS = 2
STEPS = 20
LONGEST_SECONDS = 0.8
"""Of one probe: of what is slow it takes fewer steps."""
MOST_VARIANTS = 6


def probe(job: Job, storage: Storage) -> Evidence:
    """Try a training and a trial of the study, each for less than a second where steps are fast."""
    shards = manifests.read(storage, job.inputs["shards"])
    spec, num_cores = job.spec, os.cpu_count() or 1
    rank_threads = num_threads(spec.train.ranks)
    trial_threads = max(1, num_cores // (spec.search.together * spec.search.ranks))
    with closing(TrainingData.load(storage, shards, spec.train.mix)) as data:
        is_cpu = choose_device(0, spec.train.ranks, is_first=False).type == "cpu"
        world = World(0, 1, torch.device("cpu" if is_cpu else "cuda"))
        work = _work(job, shards, data, world, rank_threads)
        share = _alone(job, spec.train.batch // spec.train.ranks)
        torch.set_num_threads(rank_threads)
        probes = [_try(share, data, world, _of_share(work))]
        trial = work.model_copy(
            update={
                "ranks": spec.search.ranks,
                "threads": trial_threads,
                "steps": spec.search.steps,
            }
        )
        if (trial.share, trial.threads) != (work.share, work.threads):
            torch.set_num_threads(trial_threads)
            share = _alone(job, spec.train.batch // spec.search.ranks)
            probes.append(_try(share, data, world, _of_share(trial)))
        variants = _variants(job, shards, data, world, rank_threads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Evidence(
        key=evidence_key(job, shards, num_cores),
        work=work,
        variants=tuple(variants),
        trial=trial,
        probes=tuple(probes),
        memory_bytes=peak if sys.platform == "darwin" else peak * 1024,
    )


def _alone(job: Job, batch: int) -> Job:
    """The job with so many samples a step, on one rank."""
    train = job.spec.train.model_dump() | {"batch": batch, "ranks": 1}
    search = job.spec.search.model_dump() | {"ranks": 1}
    return job.model_copy(update={"spec": job.spec.with_parts({"train": train, "search": search})})


def _of_share(work: Work) -> Work:
    """What one rank of a training does, without the others."""
    return work.model_copy(update={"ranks": 1, "batch": work.batch // work.ranks})


def _try(job: Job, data: TrainingData, world: World, work: Work) -> Run:
    """A few steps and, if it takes less than a second, a validation."""
    stamps: list[float] = []
    with closing(Trainer(job, data, world, steps=WARM_UP_STEPS + 1 + STEPS)) as trainer:
        trainer.run_to(WARM_UP_STEPS, lambda: stamps.append(time.perf_counter()))
        pace = stamps[-1] - stamps[-2]
        steps = max(2, min(STEPS, int(LONGEST_SECONDS / max(pace, 1e-9))))
        stamps.clear()
        before = trainer.spent
        trainer.run_to(WARM_UP_STEPS + 1 + steps, lambda: stamps.append(time.perf_counter()))
        loop_seconds = stamps[-1] - stamps[0]
        waited = (trainer.spent - before).waited_seconds
        validation_seconds = 0.0
        looks = work.validate_samples / work.batch * loop_seconds / steps
        if looks < LONGEST_SECONDS:
            start = time.perf_counter()
            trainer.validate()
            validation_seconds = time.perf_counter() - start
    return Run(
        work=work.model_copy(update={"steps": steps, "validations": 1}),
        timing=Timing(
            start_seconds=0.0,
            loop_seconds=loop_seconds,
            waited_seconds=min(waited, loop_seconds),
            validation_seconds=validation_seconds,
            stall_seconds=0.0,
            num_checkpoints=0,
        ),
    )


def _variants(
    job: Job, shards: Manifest, data: TrainingData, world: World, threads: int
) -> list[Work]:
    """Quantities at the ends of the search space, as many as there is time for."""
    found: list[Work] = []
    start = time.perf_counter()
    for spec in extremes(job.spec):
        if len(found) == MOST_VARIANTS or time.perf_counter() - start > LONGEST_SECONDS:
            break
        changed = job.model_copy(update={"spec": spec})
        found.append(_work(changed, shards, data, world, threads))
    return found


def _work(job: Job, shards: Manifest, data: TrainingData, world: World, threads: int) -> Work:
    network = build_network(job.spec.network, data.facts, job.folder)
    seen = Probe(job, data, world)
    is_cpu = world.device.type == "cpu"
    looked = Looked(
        "cpu" if is_cpu else torch.cuda.get_device_name(world.device),
        seen.flops_per_sample(),
        seen.needs().sample_bytes,
    )
    return work_of(job.spec.train, shards, network, looked, threads=threads)
