"""Where a study's workers run, chosen by one line of configuration: this machine, or Ray's.

local, torchrun    processes of this machine
ray                actors of a cluster, each with a worker as its process
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from millrace.errors import SpecError
from millrace.job import Job
from millrace.launch import write_job
from millrace.tune.connection import LocalWorker, Place, Start


@contextmanager
def placed(job: Job) -> Iterator[tuple[Job, Start]]:
    """The job with as many workers as there is room for, at their price, and what starts one.

    Raises:
        SpecError: Ray is not installed, or no machine of its cluster has room for a worker.
        ProcessDiedError: There is no cluster.
    """
    if job.launcher != "ray":
        with _on_this_machine(job) as found:
            yield _at(job, found), found.start
        return
    try:
        # Imported here: Ray is not everybody's.
        from millrace.tune.ray_workers import on_ray  # noqa: PLC0415
    except ImportError as error:
        raise SpecError(
            f"run the study of {job.pipeline} with MILLRACE_COMPUTE=ray",
            f"it needs a package that is not installed ({error})",
            "pip install 'millrace[ray]'",
        ) from error
    with on_ray(job) as found:
        yield _at(job, found), found.start


@contextmanager
def _on_this_machine(job: Job) -> Iterator[Place]:
    path = write_job(job, "worker")
    search = job.spec.search
    number = min(search.workers, max(1, (os.cpu_count() or 1) // search.ranks))
    try:
        yield Place(lambda: LocalWorker(path), number)
    finally:
        path.unlink(missing_ok=True)


def _at(job: Job, found: Place) -> Job:
    search = job.spec.search.model_copy(update={"workers": found.num_workers})
    usd_per_hour = job.usd_per_hour * found.num_machines
    spec = job.spec.model_copy(update={"search": search})
    return job.model_copy(update={"spec": spec, "usd_per_hour": usd_per_hour})
