"""A gang: the ranks that train each trial together, of which the first is the worker.

requests --> the worker, rank 0 --> the same lines to the other ranks, its children
                                    all of them: forward, backward, sums over the ranks
             rung events <-- rank 0

The gang ends when any of its ranks does: the others would wait for it.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, from C

from millrace.job import Job
from millrace.launch import environment_of_child, write_job
from millrace.telemetry import log
from millrace.train.member import PEER_LOST, losing_others
from millrace.train.world import World
from millrace.tune.worker import num_threads, serve

VERB = "trial_rank"
GRACE_SECONDS = 5.0
"""In which a rank that failed is heard before those that lost it."""
_HOST = "127.0.0.1"


def run_worker(job: Job) -> None:
    """Serve requests on standard input until it ends, on as many ranks as a trial has."""
    if job.spec.search.ranks == 1:
        serve(job, World.alone(num_threads(job.spec.search)), sys.stdin)
        return
    with _Gang(job) as gang:
        _take_part(job, gang.passed_on(sys.stdin), gang.drop_job)


def run_trial_rank(job: Job) -> None:
    """Serve what the worker passes on to standard input, as another rank of its gang."""
    _take_part(job, sys.stdin)


def _take_part(
    job: Job, requests: Iterable[str], when_all_joined: Callable[[], object] = lambda: None
) -> None:
    """Serve as the rank that the environment names.

    Raises:
        SystemExit: With PEER_LOST, when another rank has gone.
    """
    with losing_others():
        world = World.join()
        when_all_joined()
        torch.set_num_threads(num_threads(job.spec.search))
        serve(job, world, requests)
        world.leave()


class _Gang:
    """The other ranks, as children of the first; a context manager, so that none outlives it."""

    def __init__(self, job: Job) -> None:
        self._job, self._ranks = job, job.spec.search.ranks
        self._others: list[subprocess.Popen[bytes]] = []
        self._is_ending = threading.Event()

    def __enter__(self) -> Self:
        # The port is open before anybody is told of it, and from this machine alone.
        listening = socket.create_server((_HOST, 0))
        port = listening.getsockname()[1]
        self._meeting = TCPStore(
            _HOST,
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
        self._path = write_job(self._job, VERB)
        os.environ.update(_place(0, self._ranks, port))
        for rank in range(1, self._ranks):
            other = self._start(rank, port)
            self._others.append(other)
            threading.Thread(target=self._end_with, args=(rank, other), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, SystemExit):  # another rank is lost, and tells why if it can
            self._is_ending.wait(GRACE_SECONDS)
        self._is_ending.set()
        for other in self._others:
            assert other.stdin is not None, "stdin is a pipe"
            other.stdin.close()
            if error is not None:
                other.kill()
            other.wait()
        self.drop_job()

    def drop_job(self) -> None:
        """Remove the file of the job, which the ranks that have joined have read."""
        self._path.unlink(missing_ok=True)

    def passed_on(self, requests: Iterable[str]) -> Iterator[str]:
        """The requests, each as soon as the other ranks have it, too."""
        for line in requests:
            for other in self._others:
                assert other.stdin is not None, "stdin is a pipe"
                with contextlib.suppress(BrokenPipeError):  # dead: the thread beside acts upon it
                    other.stdin.write(line.encode())
            yield line

    def _start(self, rank: int, port: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "millrace", VERB, str(self._path)],
            stdin=subprocess.PIPE,
            bufsize=0,
            env=environment_of_child() | _place(rank, self._ranks, port),
        )

    def _end_with(self, rank: int, other: "subprocess.Popen[bytes]") -> None:
        """End this process when another rank has ended, in its way; idle or not."""
        code = other.wait()
        if code == PEER_LOST:
            self._is_ending.wait(GRACE_SECONDS)
        if not self._is_ending.is_set():
            log(f"rank {rank} of a trial ended with {code}")
            os._exit(code if code > 0 else PEER_LOST)


def _place(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment by which a rank joins the others; all are on one machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": str(True),  # the first rank opens no port of its own
    }
