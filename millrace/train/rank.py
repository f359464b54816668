"""One rank of a training: resume, train, save, and publish the checkpoint at the end."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from millrace import manifest as manifests
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.storage import FsspecStorage, StoredFile
from millrace.telemetry import Progress, emit, log
from millrace.train.checkpoint import NOUN, WEIGHTS, Checkpoints, weights_to_bytes
from millrace.train.loop import Trainer, TrainingData
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
        with closing(data), closing(Trainer(job, data, world)) as trainer:
            trainer.resume(checkpoints)
            resumed_at = trainer.step
            if world.is_first and resumed_at:
                log(f"resumed from the checkpoint of step {resumed_at} of {trainer.steps}")
            began = time.perf_counter()

            def spent() -> float:
                return trainer.seconds_before + time.perf_counter() - start

            _train(job, trainer, checkpoints, world, spent)
            if world.is_first:
                took = _Took(resumed_at, time.perf_counter() - began, spent())
                _publish(job, storage, shards, trainer, code, took)
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
) -> None:
    spec = job.spec.train
    progress = Progress(
        "steps",
        total=trainer.steps,
        done=trainer.step,
        every_seconds=2.0,
        usd_per_hour=job.usd_per_hour,
    )

    def after_step() -> None:
        is_last = trainer.step == trainer.steps
        if is_last or trainer.step % spec.validate_every == 0:
            found = trainer.validate()
            if world.is_first:
                emit("validation", step=trainer.step, **found)
        if world.is_first:
            last = next((p for p in reversed(trainer.curve) if "train_loss" in p), {})
            progress.step(None, train_loss=last.get("train_loss", 0.0))
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
