"""One rank of a training: resume, train, save, and publish the checkpoint at the end."""

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from millrace import manifest as manifests
from millrace.errors import StoppedError
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.models.source import source_digest
from millrace.spec import UNKEYED
from millrace.storage import FsspecStorage, StoredFile
from millrace.telemetry import emit, log
from millrace.train.budget import Budget, Pace
from millrace.train.checkpoint import NOUN, WEIGHTS, Checkpoints, weights_to_bytes
from millrace.train.choice import Choice, settle
from millrace.train.guard import back_to
from millrace.train.lookout import Lookout, Seen
from millrace.train.loop import Trainer, TrainingData
from millrace.train.notice import STOPPED, Notice
from millrace.train.proof import Proof, replay
from millrace.train.quantities import Looked, work_of
from millrace.train.watch import Watch, scale_of
from millrace.train.world import World, num_threads
from millrace.work import Timing, Work


def run_rank(job: Job) -> None:
    """Train as the rank that the environment names, from the newest checkpoint on."""
    start = time.perf_counter()
    code = source_digest(job.spec.network, job.folder)  # before it is loaded and may be edited
    storage = FsspecStorage(job.store)
    shards = manifests.read(storage, job.inputs["shards"])
    with Notice() as notice:
        world = World.join()
        try:
            checkpoints = Checkpoints(storage, job.pipeline, job.key, world)
            data = TrainingData.load(storage, shards, job.spec.train.mix)
            choice = settle(job, data, world, storage, job.spec.train.steps)
            strategy = choice.strategy
            with closing(data), closing(Trainer(job, data, world, strategy=strategy)) as trainer:
                attempt = Attempt(job, trainer, checkpoints, world, notice, start)
                scale = scale_of(job, data, choice, world)
                attempt.train(Watch(job, storage, trainer, scale, world))
                work = _work(job, shards, choice, trainer, world)
                told = {"strategy": strategy.model_dump(), "work": work.model_dump()}
                _Publication(job, storage, shards, code, told).publish(attempt, world)
        finally:
            world.leave()


class Attempt:
    """One attempt at a training, from the newest checkpoint to the last step.

    Args:
        job: What to train.
        trainer: The loop.
        checkpoints: Where it is saved and resumed.
        world: The ranks.
        notice: Whether SIGTERM has come.
        start: `time.perf_counter` when the attempt began.
    """

    def __init__(
        self,
        job: Job,
        trainer: Trainer,
        checkpoints: Checkpoints,
        world: World,
        notice: Notice,
        start: float,
    ) -> None:
        spec = job.spec.train
        self.job, self.trainer, self.checkpoints, self._world = job, trainer, checkpoints, world
        self._start = start
        trainer.guard.is_on = True
        trainer.resume(checkpoints)
        self.resumed_at = trainer.step
        if world.is_first and self.resumed_at:
            log(f"resumed from the checkpoint of step {self.resumed_at} of {trainer.steps}")
        limits = [float("inf") if x == "none" else x for x in (spec.max_usd, spec.max_hours)]
        self._budget = Budget(limits[0], limits[1], job.usd_per_hour)
        self.lookout = Lookout(
            world,
            trainer.guard,
            checkpoints,
            notice,
            Pace(spec.checkpoint_every, job.mtbf_hours / world.num_nodes),
            self._budget,
            self.spent,
        )
        self.start_seconds, self.loop_seconds = 0.0, 0.0
        """Before the first step, and in all steps with what came between them."""
        self.validation_seconds, self.stall_seconds = 0.0, 0.0
        """Of the loop, in validations and in copies for checkpoints."""
        self.num_checkpoints = 0
        self.told: dict[str, float] = {}
        """Rates that were measured."""

    def spent(self) -> float:
        """Seconds of all attempts with their starts, the earlier ones up to their checkpoint."""
        return self.trainer.seconds_before + time.perf_counter() - self._start

    def train(self, watch: Watch) -> None:
        """Update to the last step.

        Raises:
            StoppedError: SIGTERM has come; there is a checkpoint.
            BudgetError: A limit is reached; there is a checkpoint.
            TrainingError: It went wrong again and again.
        """
        trainer, began = self.trainer, time.perf_counter()
        self.start_seconds = began - self._start
        self._watch = watch
        self.lookout.start(trainer.step)
        with closing(watch):
            trainer.run_to(trainer.steps, self._after_step)
        self.loop_seconds = time.perf_counter() - began
        self.told = watch.measured()

    def _after_step(self) -> None:
        trainer, step = self.trainer, self.trainer.step
        is_last = step == trainer.steps
        validates = is_last or step % self.job.spec.train.validate_every == 0
        seen = None
        if validates or self.lookout.is_due(step):
            seen = self.lookout.look(step)
            if seen.spike is not None:
                self._roll_back(seen)
                return
        if validates:
            self._validate()
        self._watch.step()
        if seen is not None and not is_last:
            if seen.must_stop or seen.is_spent:
                self._stop(seen)
            if seen.must_save:
                self._save()

    def _validate(self) -> None:
        start = time.perf_counter()
        found = self.trainer.validate()
        self.validation_seconds += time.perf_counter() - start
        if self._world.is_first:
            emit("validation", step=self.trainer.step, **found)

    def timing(self) -> Timing:
        """What this attempt has taken, by what it was spent on."""
        between = self.validation_seconds + self.stall_seconds
        return Timing(
            start_seconds=self.start_seconds,
            loop_seconds=max(0.0, self.loop_seconds - between),
            waited_seconds=self.trainer.spent.waited_seconds,
            validation_seconds=self.validation_seconds,
            stall_seconds=self.stall_seconds,
            num_checkpoints=self.num_checkpoints,
            resumed_at=self.resumed_at,
        )

    def _save(self) -> None:
        """Copy the state; a thread publishes it."""
        start = time.perf_counter()
        place = self.trainer.place(self.spent())
        self.checkpoints.begin(place, self.trainer.network, self.trainer.optimizer)
        stall_seconds = time.perf_counter() - start
        self.stall_seconds += stall_seconds
        self.num_checkpoints += 1
        self.lookout.saved(self.trainer.step, stall_seconds)

    def _stop(self, seen: Seen) -> None:
        """Publish where it stands and raise the reason; ranks but the first just end."""
        self._save()
        self.checkpoints.finish()
        self._world.wait()
        if not self._world.is_first:  # the first rank says why
            raise SystemExit(STOPPED if seen.must_stop else 1)
        step, steps, at = self.trainer.step, self.trainer.steps, self.checkpoints.published_at
        emit("stopped", step=step, checkpoint=at, by="SIGTERM" if seen.must_stop else "budget")
        if not seen.must_stop:
            raise self._budget.error(self.job.pipeline, at, steps, self.spent())
        raise StoppedError(
            f"train {self.job.pipeline} to step {steps}",
            f"it was told to stop (SIGTERM) at step {step}; the last checkpoint is of step {at}",
            "Run it again: it goes on from there",
        )

    def _roll_back(self, seen: Seen) -> None:
        """Go back to before a spike. What is on its way is published first."""
        assert seen.spike is not None, "something went wrong"
        self.checkpoints.finish()
        self._world.wait()
        self.trainer.roll_back(self.checkpoints, seen.spike)
        self._world.wait()  # every rank has read what it goes back to
        if self._world.is_first:
            self.checkpoints.forget(after=back_to(seen.spike))
            skipped = [list(span) for span in self.trainer.guard.skips.ranges]
            told = {"what": seen.spike.what, "value": str(seen.spike.value), "skipped": skipped}
            emit("roll_back", step=seen.spike.update + 1, to=self.trainer.step, **told)
        self._watch.go_back()
        self.lookout.start(self.trainer.step)

    def proof(self) -> Proof:
        """Update anew from the last place that can be resumed, and compare. Ends the training."""
        self.checkpoints.finish()
        self._world.wait()
        return replay(self.trainer, self.checkpoints, self.lookout.witness, self._world)


def _work(job: Job, shards: Manifest, choice: Choice, trainer: Trainer, world: World) -> Work:
    looked = Looked(
        choice.device,
        choice.flops_per_sample,
        choice.kept_bytes_per_sample,
        choice.strategy.microbatches,
    )
    threads = num_threads(world.size // world.num_nodes)
    spec = job.spec.train.model_copy(update={"ranks": world.size, "steps": trainer.steps})
    return work_of(spec, shards, trainer.network, looked, threads=threads)


@dataclass(frozen=True)
class _Publication:
    """What the weights are published with."""

    job: Job
    storage: FsspecStorage
    shards: Manifest
    code: str
    told: dict[str, Any]

    def publish(self, attempt: Attempt, world: World) -> None:
        """Publish the weights; every rank must ask."""
        trainer = attempt.trainer
        weights = weights_to_bytes(trainer.network)
        facts = self._facts(trainer)
        seconds, loop_seconds = attempt.spent(), attempt.loop_seconds
        timing = attempt.timing()
        proof = attempt.proof()
        if world.is_first:
            path = f"{manifests.folder(self.job.pipeline, NOUN, self.job.key)}/{WEIGHTS}"
            file = StoredFile.written(self.storage, path, weights)
            steps_per_second = (facts["steps"] - attempt.resumed_at) / loop_seconds
            measured = {
                "resumed_at": attempt.resumed_at,
                "steps_per_second": steps_per_second,
                "samples_per_second": steps_per_second * self.job.spec.train.batch,
                "checkpoint_stall": attempt.stall_seconds / loop_seconds,
                "device": str(trainer.device),
                "timing": timing.model_dump(),
                **self.told,
                **attempt.told,
                **proof.told(),
            }
            made = Manifest(
                self.job.pipeline,
                NOUN,
                self.job.key,
                inputs={"shards": self.shards.digest},
                files=(file,),
                facts=facts,
                measured=measured,
                seconds=seconds,
                usd=seconds / 3600 * self.job.usd_per_hour,
            )
            emit("made", path=manifests.publish(self.storage, made).path)
            attempt.checkpoints.clear()
        world.wait()

    def _facts(self, trainer: Trainer) -> dict[str, Any]:
        spec = self.job.spec
        skipped = trainer.guard.skips.ranges
        return {
            "steps": trainer.steps,
            "samples": trainer.steps * spec.train.batch,
            "parameters": sum(p.numel() for p in trainer.network.parameters()),
            "curve": trainer.curve,
            "network": spec.network.model_dump(),
            "code": self.code,
            "train": spec.train.model_dump(exclude=set(UNKEYED)),
            **({"skipped_batches": [list(span) for span in skipped]} if skipped else {}),
        }
