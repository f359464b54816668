"""One rank of a training: resume, train, save, and publish the checkpoint at the end."""

import time
from contextlib import closing

from millrace import manifest as manifests
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, StoredFile
from millrace.telemetry import Progress, emit, log
from millrace.train.checkpoint import NOUN, WEIGHTS, Checkpoints, weights_to_bytes
from millrace.train.loop import Trainer, TrainingData
from millrace.train.world import World


def run_rank(job: Job) -> None:
    """Train as the rank that the environment names, from the newest checkpoint on."""
    storage = FsspecStorage(job.store)
    shards = manifests.read(storage, job.inputs["shards"])
    world = World.join()
    try:
        checkpoints = Checkpoints(storage, job.pipeline, job.key)
        with closing(Trainer(job, TrainingData.load(storage, shards), world)) as trainer:
            trainer.resume(checkpoints)
            resumed_at = trainer.step
            if world.is_first and resumed_at:
                log(f"resumed from the checkpoint of step {resumed_at} of {trainer.steps}")
            start = time.perf_counter()
            _train(job, trainer, checkpoints, world)
            if world.is_first:
                seconds = time.perf_counter() - start
                _publish(job, storage, shards, trainer, resumed_at, seconds)
                checkpoints.clear()
            world.wait()
    finally:
        world.leave()


def _train(job: Job, trainer: Trainer, checkpoints: Checkpoints, world: World) -> None:
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
            place = trainer.place()
            if world.is_first:
                checkpoints.save(place, trainer.network, trainer.optimizer)
                emit("checkpoint", step=trainer.step)

    trainer.run_to(trainer.steps, after_step)


def _publish(
    job: Job,
    storage: FsspecStorage,
    shards: Manifest,
    trainer: Trainer,
    resumed_at: int,
    seconds: float,
) -> None:
    path = f"{manifests.folder(job.pipeline, NOUN, job.key)}/{WEIGHTS}"
    file = StoredFile.written(storage, path, weights_to_bytes(trainer.network))
    steps_done = trainer.steps - resumed_at
    facts = {
        "steps": trainer.steps,
        "samples": trainer.steps * job.spec.train.batch,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "curve": trainer.curve,
        "network": job.spec.network.model_dump(),
        "train": job.spec.train.model_dump(),
    }
    measured = {
        "resumed_at": resumed_at,
        "steps_per_second": steps_done / seconds,
        "samples_per_second": steps_done * job.spec.train.batch / seconds,
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
            seconds=seconds,
            usd=seconds / 3600 * job.usd_per_hour,
        ),
    )
    emit("made", path=made.path)
