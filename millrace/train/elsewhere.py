"""A job as other hosts take it up: published on the store, with the user's own network file.

<pipeline>/job.json     what the pipeline trains at present, the text of its network file inside
"""

import os
from pathlib import Path

from millrace.job import Job
from millrace.models.source import source_path
from millrace.spec import CustomNetwork
from millrace.storage import FsspecStorage


def portable(job: Job) -> Job:
    """The job with all that it needs beside the store: nothing of this host's folders."""
    if not isinstance(job.spec.network, CustomNetwork):
        return job
    return job.model_copy(
        update={"network_source": source_path(job.spec.network, job.folder).read_text()}
    )


def landed(job: Job, store: str, work: str) -> Job:
    """A portable job on this host: its store as reached from here, its network file written."""
    folder = job.folder
    if isinstance(job.spec.network, CustomNetwork):
        place = Path(work, "elsewhere", job.pipeline, str(os.getpid()))
        place.mkdir(parents=True, exist_ok=True)
        (place / job.spec.network.file_name).write_text(job.network_source)
        folder = str(place)
    return job.model_copy(update={"store": store, "work": work, "folder": folder})


def publish_job(job: Job) -> str:
    """Publish a job for the other hosts; its URL."""
    path = f"{job.pipeline}/job.json"
    FsspecStorage(job.store).write(path, portable(job).model_dump_json().encode())
    return f"{job.store.rstrip('/')}/{path}"


def fetch_job(url: str, work: str) -> Job:
    """A published job, by its URL.

    Raises:
        NotFoundError: There is none.
    """
    store, pipeline, name = url.rsplit("/", 2)
    job = Job.model_validate_json(FsspecStorage(store).read(f"{pipeline}/{name}"))
    return landed(job, store, work)
