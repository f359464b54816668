"""Start a training's ranks on this host through torch elastic, alone or together with other hosts.

launch_local     one host, one attempt: another is the caller's decision, at equal bits
launch_hosts     hosts that the cluster gives: who is lost is done without, or waited for
join             what the other hosts run: wait for a training of the first one, take part
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousTimeoutError,
)

from millrace.errors import ProcessDiedError, StoppedError, from_event
from millrace.job import Job
from millrace.launch import environment_of_child, write_job
from millrace.telemetry import log
from millrace.train.elsewhere import fetch_job, publish_job
from millrace.train.hosts import Hosts, local_address
from millrace.train.member import is_worth_another
from millrace.train.notice import STOPPED
from millrace.train.rendezvous import Meeting, answers

JOIN_SECONDS = 600
RESTARTS = 10
"""Times that a host starts its ranks anew after a death, before the caller decides."""
_AGAIN = "Run it again: it resumes from the last checkpoint"


def launch_local(job: Job) -> None:
    """Run the ranks on this host until all are done.

    Raises:
        ProcessDiedError: A rank was killed. (One that fails emits its error itself.)
        SystemExit: A rank failed.
    """
    _run(job, Hosts(1, 1, 0, "127.0.0.1", 0), job.spec.train.ranks, restarts=0)


def launch_hosts(job: Job) -> None:
    """Run this host's share of the ranks, as the first host or another.

    Raises:
        SpecError: The environment does not say which hosts take part, or they cannot share.
        ProcessDiedError: Too few hosts came or stayed, or ranks were killed again and again.
        SystemExit: A rank failed.
    """
    hosts = Hosts.from_environment(os.environ)
    per_host = hosts.ranks_per_host(job.spec.train)
    if hosts.is_first:
        publish_job(job)
    priced = job.model_copy(update={"usd_per_hour": job.usd_per_hour * hosts.most})
    _run(priced, hosts, per_host, restarts=RESTARTS)


def join(pipeline: str, store: str, work: str) -> None:
    """Take part in every training that the first host begins, until this process is stopped.

    Raises:
        SpecError: The environment does not say which hosts take part, or they cannot share.
        StoppedError: By SIGTERM or SIGINT.
    """
    hosts = Hosts.from_environment(os.environ)
    try:
        while True:
            if answers(hosts):
                _join_once(hosts, pipeline, store, work)
            time.sleep(1.0)  # nothing tells a host that the first one is ready but its open port
    except SignalException as told:  # torch's handler stays when ranks have ended
        found = f"this host was told to stop by {told.sigval.name}"
        raise StoppedError(f"join trainings of {pipeline}", found, "Join again") from None


def _join_once(hosts: Hosts, pipeline: str, store: str, work: str) -> None:
    try:
        job = fetch_job(f"{store}/{pipeline}/job.json", work)
        _run(job, hosts, hosts.ranks_per_host(job.spec.train), restarts=RESTARTS)
    except StoppedError:
        raise
    except (ProcessDiedError, SystemExit) as error:
        log(f"this host's part has ended: {error}")


class _Agent(LocalElasticAgent):
    """torch elastic's agent, which starts ranks anew only after deaths, not after errors."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if not all(is_worth_another(found.exitcode) for found in result.failures.values()):
            self._remaining_restarts = 0
        return result


def _run(job: Job, hosts: Hosts, ranks: int, *, restarts: int) -> None:
    asked = f"train {job.pipeline} on {job.spec.train.ranks} ranks"
    path = write_job(job, "rank")
    meeting: Meeting | None = None
    os.environ.update(environment_of_child())
    try:
        meeting = Meeting(
            hosts,
            local_address(hosts.address, hosts.port or 1),
            f"{job.pipeline}-{job.key}",
            int(os.environ.get("MILLRACE_JOIN_SECONDS", JOIN_SECONDS)),
        )
        result = _agent(meeting, path, ranks, restarts).run()
        if result is None:  # torch's word for a rendezvous that another host has closed
            _raise_told(asked, meeting)
        elif result.is_failed():
            _raise_failure(asked, result, meeting, hosts)
    except RendezvousClosedError:
        _raise_told(asked, meeting)
    except RendezvousTimeoutError:
        found = f"{hosts.least} hosts did not come together in time"
        raise ProcessDiedError(asked, found, _AGAIN) from None
    except (RendezvousError, DistError) as error:
        found = f"the hosts lost each other at {hosts.address}:{hosts.port}: {error}"
        raise ProcessDiedError(asked, found, _AGAIN) from error
    except SignalException as told:  # the others go on without this host, or wait for it
        meeting = None
        found = f"this host was told to stop by {told.sigval.name}"
        raise StoppedError(asked, found, _AGAIN) from None
    finally:
        if meeting is not None:
            meeting.shutdown()
        path.unlink(missing_ok=True)


def _agent(meeting: Meeting, job: Path, ranks: int, restarts: int) -> _Agent:
    spec = WorkerSpec(
        role="rank",
        local_world_size=ranks,
        entrypoint=sys.executable,
        args=("-m", "millrace", "rank", str(job)),
        rdzv_handler=meeting,
        max_restarts=restarts,
        monitor_interval=0.2,
    )
    return _Agent(spec, DefaultLogsSpecs(), exit_barrier_timeout=30)


def _raise_failure(asked: str, result: RunResult, meeting: Meeting, hosts: Hosts) -> None:
    rank, failure = min(result.failures.items(), key=lambda item: item[1].timestamp)
    if failure.exitcode == STOPPED:
        raise StoppedError(asked, f"rank {rank} was told to stop by SIGTERM", _AGAIN)
    if is_worth_another(failure.exitcode):
        died = "was killed by signal" if failure.exitcode < 0 else "lost another; exit status"
        raise ProcessDiedError(asked, f"rank {rank} {died} {abs(failure.exitcode)}", _AGAIN)
    error: dict[str, Any] = failure.error_file_data or {}
    if not hosts.is_first:
        found = f"rank {rank} ended with {failure.exitcode} on {hosts.number}, which has its words"
        lost = {"type": "ProcessFailedError", "asked": asked, "found": found, "fix": "Look there"}
        meeting.tell_error(error.get("millrace", lost))
    raise SystemExit(1) from None


def _raise_told(asked: str, meeting: Meeting | None) -> None:
    """End as another host has: with its error."""
    told = meeting.told_error() if meeting is not None else None
    if told is not None:
        raise from_event(told) from None
    raise ProcessDiedError(asked, "another host ended it", _AGAIN) from None
