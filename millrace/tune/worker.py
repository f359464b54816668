"""A warm worker: keeps torch, the data and its trials alive, and trains them rung by rung.

standard input    {"trial": 3, "values": {...}, "to": 30}     train trial 3 to step 30
                  {"forget": 3}                               drop what is kept of it
standard output   rung events
"""

import json
import os
import sys
import time
from collections.abc import Iterable

from millrace import manifest as manifests
from millrace.errors import TrainingError
from millrace.job import Job
from millrace.storage import FsspecStorage
from millrace.telemetry import emit
from millrace.train.loop import Trainer, TrainingData
from millrace.train.world import World


def run_worker(job: Job, requests: Iterable[str] = sys.stdin) -> None:
    """Serve requests until the input ends."""
    storage = FsspecStorage(job.store)
    shards = manifests.read(storage, job.inputs["shards"])
    data = TrainingData.load(storage, shards, job.spec.train.mix)
    # The number of threads changes the order of sums: it must not depend on that of workers.
    world = World.alone(max(1, (os.cpu_count() or 1) // job.spec.search.together))
    trainers: dict[int, Trainer] = {}
    for line in requests:
        request = json.loads(line)
        if "forget" in request:
            _forget(trainers, request["forget"])
            continue
        number = request["trial"]
        if number not in trainers:  # new, or another worker had it and died: begin at step 0
            changed = job.model_copy(update={"spec": job.spec.with_values(request["values"])})
            trainers[number] = Trainer(changed, data, world, steps=job.spec.search.steps)
        _train(trainers, number, request["to"])
    for number in list(trainers):
        _forget(trainers, number)
    data.close()


def _train(trainers: dict[int, Trainer], number: int, to: int) -> None:
    """Train to a rung and report; a trial that diverges is an outcome, not an error."""
    start = time.perf_counter()
    try:
        trainers[number].run_to(to)
        loss = trainers[number].validate()["validation_loss"]
    except TrainingError as error:
        _forget(trainers, number)
        seconds = time.perf_counter() - start
        emit("rung", trial=number, step=to, failed=str(error), seconds=seconds)
        return
    seconds = time.perf_counter() - start
    emit("rung", trial=number, step=to, loss=loss, seconds=seconds)


def _forget(trainers: dict[int, Trainer], number: int) -> None:
    if (trainer := trainers.pop(number, None)) is not None:
        trainer.close()
