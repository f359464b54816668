"""Start a training's ranks through Ray Train, on an existing cluster or one of this machine alone.

    launch_ray (driver) --> TorchTrainer --> a worker per rank --> python -m millrace rank JOB
         events <-- mailbox (an actor beside the driver) <-- each line that a rank writes

RAY_ADDRESS names an existing cluster. Ray places, watches and replaces workers; a lost one ends
the attempt, and the next resumes from the last checkpoint.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from millrace.errors import ProcessDiedError, ProcessFailedError, StorageError
from millrace.job import Job
from millrace.launch import TAIL_LINES, environment_of_child, write_job
from millrace.telemetry import emit, log, parse
from millrace.train.elsewhere import landed, portable
from millrace.train.hosts import local_address
from millrace.train.member import is_worth_another

RESTARTS = 10
"""Attempts that Ray makes after deaths, before the caller decides."""
POLL_SECONDS = 0.5
_END = "end"


class Mailbox:
    """An actor that ranks drop lines into and the driver empties; the latest are kept."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=100_000)

    def put(self, line: str) -> None:
        """Drop a line."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """All lines so far, and none of them again."""
        taken = list(self._lines)
        self._lines.clear()
        return taken


class _NoBackend(Backend):  # type: ignore[misc]  # types of Ray are not read
    share_cuda_visible_devices = True


class _RanksConnect(TorchConfig):  # type: ignore[misc]  # as above
    """Ray's own process group is not made: the ranks, processes of their own, make theirs."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _NoBackend


def launch_ray(job: Job) -> None:
    """Run the ranks on Ray's workers.

    Raises:
        ProcessDiedError: There is no cluster, or ranks were lost again and again.
        SystemExit: A rank failed, and its error has been emitted.
    """
    ranks = job.spec.train.ranks
    open_cluster(f"train {job.pipeline}", max(ranks + 1, os.cpu_count() or 1))
    try:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        ended: list[BaseException | None] = []
        trainer = _trainer(job, mailbox)
        fitting = threading.Thread(target=_fit, args=(trainer, mailbox, ended), daemon=True)
        fitting.start()
        _forward(mailbox)
        if ended and ended[0] is not None:
            raise ProcessDiedError(
                f"train {job.pipeline} on {ranks} ranks of Ray",
                str(ended[0]).strip().splitlines()[-1],
                "Run it again: it resumes from the last checkpoint",
            )
    finally:
        ray.shutdown()


def open_cluster(asked: str, num_cpus: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one of this machine with so many CPUs.

    Raises:
        ProcessDiedError: There is none, or none that can be started.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        else:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise ProcessDiedError(
            f"{asked} on the Ray cluster {address or 'of this machine'}",
            str(error),
            "Correct RAY_ADDRESS, or start the cluster: ray start --head",
        ) from error


def _trainer(job: Job, mailbox: Any) -> TorchTrainer:
    ranks = job.spec.train.ranks
    gpus = ray.cluster_resources().get("GPU", 0)
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    priced = portable(job).model_copy(update={"usd_per_hour": job.usd_per_hour * nodes})
    return TorchTrainer(
        _work,
        train_loop_config={"job": priced.model_dump_json(), "mailbox": mailbox},
        torch_config=_RanksConnect(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=ranks,
            use_gpu=gpus >= ranks,
            placement_strategy="SPREAD" if nodes > 1 else "PACK",
        ),
        run_config=RunConfig(
            name=f"{job.pipeline}-{job.key[:12]}-{os.getpid()}",
            storage_path=os.path.join(job.work, "ray"),
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )


def _fit(trainer: TorchTrainer, mailbox: Any, ended: list[BaseException | None]) -> None:
    try:
        trainer.fit()
        ended.append(None)
    except Exception as error:  # noqa: BLE001  the edge of this thread; the driver raises it
        ended.append(error)
    ray.get(mailbox.put.remote(_END))


def _forward(mailbox: Any) -> None:
    """Write what ranks say to our output until the training ends; a rank's error ends it."""
    waiting = threading.Event()
    while True:
        for line in ray.get(mailbox.take.remote()):
            if line == _END:
                return
            event = parse(line)
            if event is None:
                log(line)
                continue
            emit(event.pop("event"), **event)
            if line.startswith('{"event": "error"'):
                raise SystemExit(1)
        waiting.wait(POLL_SECONDS)


def _work(config: dict[str, Any]) -> None:
    """What a Ray worker does: run a rank as a process, and pass on what it writes.

    Raises:
        RuntimeError: The rank died, or lost another: Ray tries again.
    """
    mailbox = config["mailbox"]
    context = ray.train.get_context()
    job = landed_on_ray(Job.model_validate_json(config["job"]))
    address, port = broadcast_from_rank_zero(_meeting_place())
    path = write_job(job, f"rank{context.get_world_rank()}")
    environment = environment_of_child() | {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "millrace", "rank", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    try:
        code = _pass_on(process, lambda line: ray.get(mailbox.put.remote(line)))
    finally:
        process.kill()
        path.unlink(missing_ok=True)
    if is_worth_another(code):
        raise RuntimeError(f"rank {context.get_world_rank()} died with status {code}")


def _pass_on(process: "subprocess.Popen[str]", put: Callable[[str], object]) -> int:
    """Pass on each line until the process ends; an end that says no error is told as one."""
    assert process.stdout is not None, "stdout is a pipe"
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    has_told = False
    with process.stdout:
        for line in process.stdout:
            if not (text := line.rstrip()):
                continue
            has_told = has_told or text.startswith('{"event": "error"')
            if parse(text) is None:
                tail.append(text)
            put(text)
    code = process.wait()
    if code and not has_told and not is_worth_another(code):
        found = f"it exited with {code}; its last words:\n" + "\n".join(tail) + "\n"
        error = ProcessFailedError("run a rank on Ray", found, "Correct the network, or report it")
        put(json.dumps({"event": "error", **error.to_event()}))
    return code


def landed_on_ray(job: Job) -> Job:
    """The job on this machine, its store as the environment here names it, else as told.

    Raises:
        StorageError: There is no folder for scratch here.
    """
    work = os.environ.get("MILLRACE_WORK", job.work)
    try:
        return landed(job, os.environ.get("MILLRACE_STORE", job.store), work)
    except OSError as error:
        raise StorageError(
            f"use {work} for scratch", str(error), "Set MILLRACE_WORK where Ray starts"
        ) from error


def _meeting_place() -> tuple[str, int]:
    """An address and a free port of this worker's machine, where it is the first rank's."""
    address = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((local_address(address), 0))
        return address, int(free.getsockname()[1])
