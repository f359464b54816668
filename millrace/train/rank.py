"""One rank of a training: resume, train, save, and publish the checkpoint at the end."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from millrace import manifest as manifests
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.storage import FsspecStorage, StoredFile
from millrace.telemetry import emit, log
from millrace.train.checkpoint import NOUN, WEIGHTS, Checkpoints, weights_to_bytes
from millrace.train.choice import settle
from millrace.train.loop import Trainer, TrainingData
from millrace.train.watch import Watch, scale_of
from millrace.train.world import World


def run_rank(job: Job) -> None:
    """Train as the rank that the environment names, from the newest checkpoint on."""
    start = time.perf_counter()
    code = source_digest(job.spec.network, job.folder)  # before it is loaded and may be edited
    storage = FsspecStorage(job.store)
    shards = manifests.read(storage, job.inputs["shards"])
    world = World.join()
    try:
        checkpoints = Checkpoints(storage, job.pipeline, job.key)
        data = TrainingData.load(storage, shards, job.spec.train.mix)
        choice = settle(job, data, world, storage, job.spec.train.steps)
        strategy = choice.strategy
        with closing(data), closing(Trainer(job, data, world, strategy=strategy)) as trainer:
            trainer.resume(checkpoints)
            resumed_at = trainer.step
            if world.is_first and resumed_at:
                log(f"resumed from the checkpoint of step {resumed_at} of {trainer.steps}")
            began = time.perf_counter()

            def spent() -> float:
                return trainer.seconds_before + time.perf_counter() - start

            watch = Watch(job, storage, trainer, scale_of(job, data, choice, world), world)
            _train(job, trainer, checkpoints, world, spent, watch)
            watch.close()
            if world.is_first:
                took = _Took(resumed_at, time.perf_counter() - began, spent())
                told = watch.measured() | {"strategy": strategy.model_dump()}
                _publish(job, storage, shards, trainer, code, took, told)
                checkpoints.clear()
            world.wait()
    finally:
        world.leave()


@dataclass(frozen=True)
class _Took:
    """What the attempt that ended the training, and all attempts together, have taken."""

    resumed_at: int
    loop_seconds: float
    """Of the last attempt's steps: rates are per these."""
    seconds: float
    """Of all attempts with their starts, the earlier ones up to their last checkpoint."""


def _train(
    job: Job,
    trainer: Trainer,
    checkpoints: Checkpoints,
    world: World,
    spent: Callable[[], float],
    watch: Watch,
) -> None:
    spec = job.spec.train

    def after_step() -> None:
        is_last = trainer.step == trainer.steps
        if is_last or trainer.step % spec.validate_every == 0:
            found = trainer.validate()
            if world.is_first:
                emit("validation", step=trainer.step, **found)
        watch.step()
        if not is_last and trainer.step % spec.checkpoint_every == 0:
            place = trainer.place(spent())
            if world.is_first:
                checkpoints.save(place, trainer.network, trainer.optimizer)
                emit("checkpoint", step=trainer.step)

    trainer.run_to(trainer.steps, after_step)


def _publish(
    job: Job,
    storage: FsspecStorage,
    shards: Manifest,
    trainer: Trainer,
    code: str,
    took: _Took,
    told: Mapping[str, Any],
) -> None:
    path = f"{manifests.folder(job.pipeline, NOUN, job.key)}/{WEIGHTS}"
    file = StoredFile.written(storage, path, weights_to_bytes(trainer.network))
    steps_per_second = (trainer.steps - took.resumed_at) / took.loop_seconds
    facts = {
        "steps": trainer.steps,
        "samples": trainer.steps * job.spec.train.batch,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "curve": trainer.curve,
        "network": job.spec.network.model_dump(),
        "code": code,
        "train": job.spec.train.model_dump(),
    }
    measured = {
        "resumed_at": took.resumed_at,
        "steps_per_second": steps_per_second,
        "samples_per_second": steps_per_second * job.spec.train.batch,
        "device": str(trainer.device),
        **told,
    }
    made = manifests.publish(
        storage,
        Manifest(
            job.pipeline,
            NOUN,
            job.key,
            inputs={"shards": shards.digest},
            files=(file,),
            facts=facts,
            measured=measured,
            seconds=took.seconds,
            usd=took.seconds / 3600 * job.usd_per_hour,
        ),
    )
    emit("made", path=made.path)
