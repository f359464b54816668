"""A study's workers on a Ray cluster: an actor for each, which runs the very worker program.

pool --> RayWorker --> actor --> python -m millrace worker JOB, on the actor's machine
pool <-- a pipe, filled by a thread beside <-- actor <-- its output

RAY_ADDRESS names an existing cluster. An actor or a machine that is lost closes the pipe: so ends
a worker that has died, and the pool hands its rung job on.
"""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from millrace.errors import MillraceError, SpecError
from millrace.job import Job
from millrace.launch import write_job
from millrace.telemetry import log
from millrace.train.elsewhere import portable
from millrace.train.ray_cluster import landed_on_ray, open_cluster
from millrace.tune.connection import LocalWorker, Place

READ_BYTES = 2**16
GRACE_SECONDS = 5.0
"""Until Ray says that an actor that was killed is gone; its machine may not answer."""
_LOST = -signal.SIGKILL


class Host:
    """An actor that runs a worker on its machine; its end is the worker's.

    Args:
        job: A portable one, as JSON.
    """

    def __init__(self, job: str) -> None:
        self._worker: LocalWorker | None = None
        self._refusal = b""
        try:
            own = landed_on_ray(Job.model_validate_json(job))
            self._path = write_job(own, "worker")
            self._worker = LocalWorker(self._path)
        except MillraceError as error:  # told as the worker would tell it
            event = json.dumps({"event": "error", **error.to_event()})
            self._refusal = event.encode() + b"\n"

    def read(self) -> bytes:
        """What the worker says next; empty when it can say no more."""
        if self._worker is None:
            words, self._refusal = self._refusal, b""
            return words
        words = os.read(self._worker.fileno(), READ_BYTES)
        self._path.unlink(missing_ok=True)  # who says something has read it
        return words

    def write(self, data: bytes) -> None:
        """Tell the worker something."""
        if self._worker is not None:
            self._worker.write(data)

    def wait(self) -> int:
        """The worker's exit status."""
        if self._worker is None:
            return 1
        return self._worker.wait()


class RayWorker:
    """A worker on the cluster, a `connection.Connection`.

    Args:
        job: A portable one, as JSON.
        cpus: What it takes of its machine; one machine has all of it.
        gpus: Likewise.
    """

    def __init__(self, job: str, cpus: int, gpus: int) -> None:
        # Reading waits for the worker; writing must not wait for that, and keeps its order.
        groups = {"out": 1, "in": 1}
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, concurrency_groups=groups)(Host)
        self._host = actor.remote(job)
        self._output, pipe = os.pipe()
        self._code, self._is_buried = _LOST, False
        self._reading = threading.Thread(target=self._pass_on, args=(pipe,), daemon=True)
        self._reading.start()

    def fileno(self) -> int:
        """Of the pipe that carries its output."""
        return self._output

    def write(self, data: bytes) -> None:
        """To its input, by way of its actor."""
        self._host.write.options(concurrency_group="in").remote(data)

    def wait(self) -> int:
        """Its exit status; that of a killed one where its actor or its machine is lost."""
        self._reading.join()
        return self._code

    def bury(self) -> None:
        """Kill its actor, and it with that."""
        self._is_buried = True
        with contextlib.suppress(RayError):
            ray.kill(self._host)
        os.close(self._output)
        self._reading.join(GRACE_SECONDS)

    def _pass_on(self, pipe: int) -> None:
        """Carry what it says from its actor to the pipe, until either ends."""
        read = self._host.read.options(concurrency_group="out")
        with open(pipe, "wb", buffering=0) as output:
            try:
                while data := ray.get(read.remote()):
                    output.write(data)
                self._code = ray.get(self._host.wait.options(concurrency_group="out").remote())
            except RayError as error:
                if not self._is_buried:
                    log(f"lost an actor of Ray: {str(error).strip().splitlines()[0]}")
            except BrokenPipeError:  # buried
                pass


@contextmanager
def on_ray(job: Job) -> Iterator[Place]:
    """A place for the workers on the cluster that RAY_ADDRESS names, else on one of this machine.

    Raises:
        ProcessDiedError: There is no cluster.
        SpecError: None of its machines has room for a worker.
    """
    search = job.spec.search
    asked = f"run the study of {job.pipeline}"
    open_cluster(asked, max(search.ranks, os.cpu_count() or 1))
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        with_gpus = num_places(machines, search.ranks, "CPU", "GPU")
        number = min(search.workers, with_gpus or num_places(machines, search.ranks, "CPU"))
        if not number:
            raise SpecError(
                f"{asked} on Ray",
                f"none of {len(machines)} machines has {search.ranks} CPUs",
                "Lower `search.ranks`, or start larger machines",
            )
        told = portable(job).model_dump_json()
        gpus = search.ranks if with_gpus else 0
        yield Place(lambda: RayWorker(told, search.ranks, gpus), number, len(machines))
    finally:
        ray.shutdown()


def num_places(machines: Sequence[Mapping[str, Any]], ranks: int, *kinds: str) -> int:
    """Workers that find room, each on one machine with a resource of each kind for every rank."""
    return sum(min(int(machine.get(kind, 0)) // ranks for kind in kinds) for machine in machines)
