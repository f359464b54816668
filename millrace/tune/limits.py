"""What a trial needs of the things that a search may limit: memory to train, seconds to answer."""

import statistics
import time

import numpy as np
import torch

from millrace.data.columns import take
from millrace.data.images import decoded
from millrace.job import Job
from millrace.train.loop import Trainer, TrainingData
from millrace.train.objective import build_objective, to_batch
from millrace.train.probe import Probe
from millrace.train.world import World

REPEATS = 7


def measure_memory_bytes(job: Job, data: TrainingData, world: World) -> int:
    """Bytes that a rank needs: its weights, gradients and moments, and its share of a forward.

    They are counted, not read off the process: a warm worker holds other trials, too. So they are
    the same each time.
    """
    needs = Probe(job, data, world).needs()
    return needs.state_bytes + job.spec.train.batch // world.size * needs.sample_bytes


def measure_latency_seconds(job: Job, trainer: Trainer, data: TrainingData) -> float:
    """Median seconds from one sample to its scores, of several after a warm-up."""
    objective = build_objective(job.spec.task)
    sample = take(data.validation.frame(0), np.arange(1))
    batch = to_batch(next(decoded(iter([sample]), data.validation.fields)), trainer.device)
    trainer.network.eval()
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            objective.scores(trainer.network, batch)
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
