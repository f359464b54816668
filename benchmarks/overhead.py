"""What the tuning plane itself takes: to dispatch a job, and to decide what is trained next."""

import resource
from pathlib import Path

from benchmarks.quality_cases.case import packed_shards
from millrace.job import Job
from millrace.launch import write_job
from millrace.spec_file import read_specs
from millrace.tune.connection import LocalWorker
from millrace.tune.pool import WorkerPool
from millrace.tune.rung import RungJob
from millrace.tune.study import tune

PIPELINES = Path(__file__).parents[1] / "pipelines"
WARM_JOBS = 40


def shipped(name: str, folder: Path) -> Job:
    """A pipeline that ships, its shards packed below `folder`, its study ready to run."""
    spec = next(read_specs(PIPELINES / name / "defs.yaml"))
    job, shards = packed_shards(spec.model_dump(), folder)
    return job.model_copy(update={"key": "study", "inputs": {"shards": shards.path}})


def dispatch_seconds(job: Job, runs: int) -> tuple[list[float], list[float]]:
    """CPU seconds of a job of one step: in a process started for it, and in a warm worker.

    Both are of worker and pool together, the step itself and its validation included.
    """
    path = write_job(job, "worker")
    fresh, warm = [], []
    for _ in range(runs):
        one, many = (_cpu_of_pool(job, path, number) for number in (1, 1 + WARM_JOBS))
        fresh.append(one)
        warm.append((many - one) / WARM_JOBS)
    return fresh, warm


def _cpu_of_pool(job: Job, path: Path, num_jobs: int) -> float:
    values = job.spec.values_at(job.spec.search.space)
    start = _cpu_seconds(resource.RUSAGE_SELF) + _cpu_seconds(resource.RUSAGE_CHILDREN)
    with WorkerPool(lambda: LocalWorker(path), 1) as pool:
        for number in range(num_jobs):
            pool.submit(RungJob(number, values, 1))
            for ended, _ in pool.wait():
                pool.forget(ended.training)
    return _cpu_seconds(resource.RUSAGE_SELF) + _cpu_seconds(resource.RUSAGE_CHILDREN) - start


def tuner_share(job: Job) -> tuple[float, float]:
    """CPU seconds of a study's coordinator, its database included, and of its workers."""
    tuner, workers = _cpu_seconds(resource.RUSAGE_SELF), _cpu_seconds(resource.RUSAGE_CHILDREN)
    tune(job)
    return (
        _cpu_seconds(resource.RUSAGE_SELF) - tuner,
        _cpu_seconds(resource.RUSAGE_CHILDREN) - workers,
    )


def _cpu_seconds(whose: int) -> float:
    """User and system time; of children once they were waited for."""
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime
