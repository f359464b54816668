"""A warm worker: keeps torch, the data and its trainings alive, and trains them rung by rung.

standard input    {"trial": 3, "repetition": 0, "attempt": 1, "values": {...}, "to": 30}
                  {"forget": [3, 0]}                          drop what is kept of it
standard output   rung events, and an `alive` event now and then while it trains

Where several ranks train a trial together, each runs this on the same requests; the first tells.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from millrace import manifest as manifests
from millrace.errors import SpecError, TrainingError
from millrace.job import Job
from millrace.search import SearchSpec
from millrace.storage import FsspecStorage
from millrace.telemetry import emit
from millrace.train.loop import Trainer, TrainingData
from millrace.train.world import World
from millrace.tune.limits import measure_latency_seconds, measure_memory_bytes
from millrace.tune.rung import Training

ALIVE_SECONDS = 2.0
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def serve(job: Job, world: World, requests: Iterable[str]) -> None:
    """Serve requests until they end, as the only rank or as one of several."""
    worker = _Worker(job, world)
    for line in requests:
        request = json.loads(line)
        if "forget" in request:
            trial, repetition = request["forget"]
            worker.forget((trial, repetition))
        else:
            worker.serve(request)
    worker.close()


def num_threads(search: SearchSpec) -> int:
    """Threads of a rank: they change the order of sums, so they must not depend on `workers`."""
    return max(1, (os.cpu_count() or 1) // (search.together * search.ranks))


class _Worker:
    """The data of a study's job and the trainings that are kept of its trials."""

    def __init__(self, job: Job, world: World) -> None:
        storage = FsspecStorage(job.store)
        shards = manifests.read(storage, job.inputs["shards"])
        self._job = job
        self._data = TrainingData.load(storage, shards, job.spec.train.mix)
        self._world = world
        self._trainers: dict[Training, Trainer] = {}
        self._measured: dict[Training, dict[str, float]] = {}

    def serve(self, request: dict[str, Any]) -> None:
        """Train to a rung and tell; a trial that diverges or is too large is an outcome."""
        training = request["trial"], request["repetition"]
        told = {name: request[name] for name in ("trial", "repetition", "attempt")}
        start, failed, is_short = time.perf_counter(), "", False
        with _alive(self._world.rank):
            try:
                told |= self._train(training, request)
            except (TrainingError, SpecError) as error:
                failed = str(error)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                failed = f"out of memory: {' '.join(str(error).split())[:200]}"
                is_short = True
        if failed:
            self.forget(training)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            told |= {"failed": failed, "step": 0, "steps": 0}
        if self._world.is_first or is_short:
            emit("rung", **told, seconds=time.perf_counter() - start)
        if is_short and self._world.size > 1:  # the others may wait in a sum to which it adds none
            os.kill(os.getpid(), signal.SIGKILL)

    def forget(self, training: Training) -> None:
        """Drop what is kept of a training."""
        self._measured.pop(training, None)
        if (trainer := self._trainers.pop(training, None)) is not None:
            trainer.close()

    def close(self) -> None:
        """Give up all that is kept."""
        for training in list(self._trainers):
            self.forget(training)
        self._data.close()

    def _train(self, training: Training, request: dict[str, Any]) -> dict[str, Any]:
        trainer = self._trainer(training, request["values"])
        before = trainer.step
        _run(trainer, request["to"], request.get("max_seconds", math.inf), self._world)
        loss = trainer.validate()["validation_loss"]
        steps = trainer.step - before
        return {"loss": loss, "step": trainer.step, "steps": steps, **self._measured[training]}

    def _trainer(self, training: Training, values: dict[str, Any]) -> Trainer:
        """The training as far as it is; at step 0 where it is new, or its worker has died."""
        if training not in self._trainers:
            spec = self._job.spec
            seed = spec.train.seed + training[1]
            changed = self._job.model_copy(
                update={"spec": spec.with_values({**values, "train.seed": seed})}
            )
            trainer = Trainer(changed, self._data, self._world, steps=spec.search.steps)
            trainer.validated_by = changed.spec.train.model_copy(update={"seed": spec.train.seed})
            self._trainers[training] = trainer
            self._measured[training] = self._measure(changed, trainer)
        return self._trainers[training]

    def _measure(self, changed: Job, trainer: Trainer) -> dict[str, float]:
        """What there is a limit to."""
        found: dict[str, float] = {}
        if changed.spec.search.max_memory_bytes != "none":
            found["memory_bytes"] = measure_memory_bytes(changed, self._data, self._world)
        if changed.spec.search.max_latency_seconds != "none":
            found["latency_seconds"] = measure_latency_seconds(changed, trainer, self._data)
        return found


def _run(trainer: Trainer, to: int, max_seconds: float, world: World) -> None:
    """Train to a step, or as far as the first rank's seconds go; one step at least."""
    if math.isinf(max_seconds):
        trainer.run_to(to)
        return
    start, begun_at, more = time.perf_counter(), trainer.step, 1
    while trainer.step < to and more:
        trainer.run_to(min(to, trainer.step + more))
        seconds = time.perf_counter() - start
        step_seconds = seconds / (trainer.step - begun_at)
        more = max(0, int((max_seconds - seconds) / step_seconds)) if world.is_first else 0
        more = int(world.sum(torch.tensor(more, device=world.device)))


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def _alive(rank: int) -> Iterator[None]:
    """Say now and then, from a thread beside, that this process is not paused."""
    ended = threading.Event()

    def tell() -> None:
        emit("alive", rank=rank)
        while not ended.wait(ALIVE_SECONDS):
            emit("alive", rank=rank)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
