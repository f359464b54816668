"""What a training tells while it runs: progress events, and scalars for TensorBoard."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from millrace import manifest as manifests
from millrace.errors import MillraceError
from millrace.job import Job
from millrace.spec import LanguageModelTask
from millrace.storage import Storage
from millrace.telemetry import Progress, log
from millrace.train.checkpoint import NOUN
from millrace.train.choice import Choice
from millrace.train.loop import Trainer, TrainingData
from millrace.train.meter import Scale, Spent, peak_memory_bytes
from millrace.train.optim import learning_rate
from millrace.train.tensorboard import EventFile
from millrace.train.world import World

FOLDER = "tensorboard"
SAY_SECONDS = 2.0
WRITE_SECONDS = 30.0


class Watch:
    """Follows a trainer; the first rank speaks and writes, the others keep quiet.

    Args:
        job: What is trained.
        storage: Where TensorBoard's files go, below the checkpoint's folder.
        trainer: As it stands after resuming.
        scale: What its steps mean.
        world: This process among the ranks.
    """

    def __init__(
        self, job: Job, storage: Storage, trainer: Trainer, scale: Scale, world: World
    ) -> None:
        self._job, self._storage, self._trainer, self._scale = job, storage, trainer, scale
        self._world = world
        self._progress = Progress(
            "steps",
            total=trainer.steps,
            done=trainer.step,
            every_seconds=SAY_SECONDS,
            usd_per_hour=job.usd_per_hour,
            seconds_before=trainer.seconds_before,
        )
        self._said, self._drawn = trainer.spent, trainer.spent
        self._points = len(trainer.curve)
        self._events = EventFile(trainer.step, time.time())
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tensorboard")
        self._writing: Future[None] | None = None
        self._written = time.monotonic()

    def step(self) -> None:
        """Look at the trainer after a step, and say and draw what there is to tell."""
        if not self._world.is_first:
            return
        self._draw()
        self._progress.done = self._trainer.step - 1  # a trainer may have gone back
        if self._progress.is_due():
            fields = self._rates(self._said)
            self._said = self._trainer.spent
            last = next((p for p in reversed(self._trainer.curve) if "train_loss" in p), {})
            memory_bytes = peak_memory_bytes(self._trainer.device)
            fields |= {"train_loss": last.get("train_loss", 0.0), "memory_bytes": memory_bytes}
            self._progress.step(None, **fields)
        else:
            self._progress.step(None)

    def go_back(self) -> None:
        """The trainer has been rolled back: go on from where it stands now."""
        self._points = len(self._trainer.curve)
        self._progress.done = self._trainer.step

    def measured(self) -> dict[str, float]:
        """Rates over all steps of this attempt, and the most memory that was held."""
        return self._rates(Spent()) | {"memory_bytes": peak_memory_bytes(self._trainer.device)}

    def close(self) -> None:
        """Write what was drawn since the last time, and wait for it."""
        if self._world.is_first:
            self._write()
        self._pool.shutdown(wait=True)

    def _rates(self, since: Spent) -> dict[str, float]:
        return self._scale.rates(self._trainer.spent - since)

    def _draw(self) -> None:
        """Scalars of the curve's new points: where the loop has waited for the device anyway."""
        self._points = min(self._points, len(self._trainer.curve))  # likewise
        new = self._trainer.curve[self._points :]
        if not new:
            return
        self._points = len(self._trainer.curve)
        step, spec = self._trainer.step, self._job.spec.train
        rates = {f"speed/{name}": value for name, value in self._rates(self._drawn).items()}
        self._drawn = self._trainer.spent
        for point in new:
            scalars: Mapping[str, float] = {
                f"loss/{name}" if name.endswith("loss") else f"metric/{name}": value
                for name, value in point.items()
                if name != "step"
            }
            self._events.add(int(point["step"]), scalars, time.time())
        more = {
            "train/learning_rate": learning_rate(step - 1, spec, self._trainer.steps),
            "train/gradient_norm": self._trainer.gradient_norm.item(),
            "cost/usd": self._progress.usd,
            "memory/bytes": float(peak_memory_bytes(self._trainer.device)),
        }
        self._events.add(step, rates | more, time.time())
        is_idle = self._writing is None or self._writing.done()
        if is_idle and time.monotonic() - self._written >= WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._writing = self._pool.submit(self._publish, self._events.to_bytes())

    def _publish(self, data: bytes) -> None:
        folder = f"{manifests.folder(self._job.pipeline, NOUN, self._job.key)}/{FOLDER}"
        try:
            self._storage.write(f"{folder}/{self._events.name}", data)
        except MillraceError as error:  # pictures are no reason to stop a training
            log(f"scalars were not written: {error}")


def scale_of(job: Job, data: TrainingData, choice: Choice, world: World) -> Scale:
    """What the steps of a job mean on these ranks."""
    is_text = isinstance(job.spec.task, LanguageModelTask)
    return Scale(
        batch=job.spec.train.batch,
        tokens_per_sample=data.weight_per_sample if is_text else 0.0,
        flops_per_sample=choice.flops_per_sample,
        peak_flops_per_second=choice.peak_flops_per_second * world.size,
    )
