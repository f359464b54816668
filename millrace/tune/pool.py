"""A pool of warm workers: hands out rung jobs, notices a death at once and hands its job on."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from types import TracebackType
from typing import IO, Any, Self

from millrace.errors import ProcessDiedError, ProcessFailedError, from_event
from millrace.frozen import Scalar
from millrace.launch import TAIL_LINES, environment_of_child
from millrace.telemetry import log, parse

ATTEMPTS = 3
READ_BYTES = 2**16
SILENCE_SECONDS = 30 * 60.0
"""How long a worker may say nothing about its rung job before it is taken for stuck."""


@dataclass(frozen=True, eq=False)
class RungJob:
    """Train trial `trial` with `values` up to step `to`."""

    trial: int
    values: dict[str, Scalar]
    to: int


@dataclass(frozen=True)
class Rung:
    """How a rung job ended: a loss, or why there is none."""

    loss: float
    failed: str
    seconds: float


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    job: RungJob | None = None
    trials: set[int] = field(default_factory=set)
    """Those it keeps in memory."""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    """Its last words that are no events."""
    heard_at: float = 0.0
    """When it was given its job, or last said something about it (monotonic seconds)."""
    _unread: bytes = b""

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None, "stdin is a pipe"
        with contextlib.suppress(BrokenPipeError):  # dead: its closed output is acted upon
            self.process.stdin.write(json.dumps(message).encode() + b"\n")

    def lines(self) -> list[str] | None:
        """The whole lines that have come, or None when no more can.

        Lines are cut here, not by `readline`: the selector does not see what a buffer keeps back.
        """
        data = os.read(self.output.fileno(), READ_BYTES)
        if not data:
            return None
        *whole, self._unread = (self._unread + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None, "stdout is a pipe"
        return self.process.stdout

    def bury(self) -> int:
        """Kill it if it lives, free what it held; its exit status."""
        self.process.kill()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return code


class Pool:
    """Worker processes for one study; a context manager, so that none outlives it."""

    def __init__(self, job_path: Path, size: int) -> None:
        self._job_path, self._size = job_path, size
        self._selector = DefaultSelector()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        for _ in range(self._size):
            self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.bury()
        self._selector.close()

    def _start(self) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-m", "millrace", "worker", str(self._job_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=environment_of_child(),
        )
        worker = _Worker(process)
        self._workers.append(worker)
        self._selector.register(worker.output, EVENT_READ, worker)
        return worker

    def run(self, jobs: Sequence[RungJob]) -> Iterator[tuple[RungJob, Rung]]:
        """Run all jobs, yielding each as it ends.

        Raises:
            ProcessDiedError: A job outlived several workers, or its worker fell silent.
            ProcessFailedError: A worker ended with an error that is not Millrace's.
            MillraceError: A worker met an error that is no trial's outcome.
        """
        waiting, attempts, left = deque(jobs), dict.fromkeys(jobs, 0), len(jobs)
        while left:
            self._hand_out(waiting)
            for key, _ in self._selector.select(self._patience()):
                worker: _Worker = key.data
                lines, worker.heard_at = worker.lines(), time.monotonic()
                if lines is None:
                    self._replace(worker, waiting, attempts)
                    continue
                for rung in filter(None, (_hear(worker, line) for line in lines)):
                    assert worker.job is not None, "a worker reports only what it was given"
                    done, worker.job = worker.job, None
                    left -= 1
                    yield done, rung

    def _patience(self) -> float:
        """Seconds until the first worker has been silent for too long.

        Raises:
            ProcessDiedError: One has.
        """
        busy = [worker for worker in self._workers if worker.job is not None]
        first = min(busy, key=lambda worker: worker.heard_at)
        left = first.heard_at + SILENCE_SECONDS - time.monotonic()
        if left <= 0:
            assert first.job is not None, "only busy workers are looked at"
            raise ProcessDiedError(
                f"train trial {first.job.trial} to step {first.job.to}",
                f"its worker has said nothing for {SILENCE_SECONDS / 60:g} minutes",
                "Look for what its network waits for, or lower `search.steps`; "
                "run it again: the study goes on after its last whole wave",
            )
        return left

    def forget(self, trial: int) -> None:
        """Let the workers drop what they keep of a trial."""
        for worker in self._workers:
            if trial in worker.trials:
                worker.trials.discard(trial)
                worker.send({"forget": trial})

    def _hand_out(self, waiting: deque[RungJob]) -> None:
        for job in list(waiting):
            worker = self._worker_for(job.trial)
            if worker is not None:
                waiting.remove(job)
                worker.job, worker.heard_at = job, time.monotonic()
                worker.trials.add(job.trial)
                worker.send({"trial": job.trial, "values": job.values, "to": job.to})

    def _worker_for(self, trial: int) -> _Worker | None:
        """The worker that keeps the trial, else an idle or a new one; None while all are busy."""
        for worker in self._workers:
            if trial in worker.trials:
                return worker if worker.job is None else None
        idle = [worker for worker in self._workers if worker.job is None]
        if idle:
            return min(idle, key=lambda worker: len(worker.trials))
        return self._start() if len(self._workers) < self._size else None

    def _replace(
        self, worker: _Worker, waiting: deque[RungJob], attempts: dict[RungJob, int]
    ) -> None:
        """Put a dead worker's job first in line; another worker is started when one is needed."""
        self._selector.unregister(worker.output)
        self._workers.remove(worker)
        code = worker.process.wait()
        worker.bury()
        job = worker.job
        asked = f"train trial {job.trial} to step {job.to}" if job else "keep a worker"
        if code > 0:
            words = "\n".join(worker.tail)
            raise ProcessFailedError(
                asked,
                f"its worker exited with {code}; its last words:\n{words}\n",
                "If the network is your own, look there; else it is a bug of Millrace: report it",
            )
        log(f"a worker died (exit status {code}): {asked} is handed on")
        if job is None:
            return
        attempts[job] += 1
        if attempts[job] == ATTEMPTS:
            raise ProcessDiedError(
                asked,
                f"{ATTEMPTS} workers died of it, the last with exit status {code}",
                "Look for what kills them (memory?), or narrow `search.space`",
            )
        waiting.appendleft(job)


def _hear(worker: _Worker, line: str) -> Rung | None:
    """What a line of a worker says: a rung it reached; else it is passed on, or raised."""
    event = parse(line)
    if not line.strip():  # the emitter's, so that an event starts on a line of its own
        return None
    if event is None:
        worker.tail.append(line)
        log(line)
    elif event["event"] == "log":
        log(event["message"])
    elif event["event"] == "error":
        raise from_event(event)
    elif event["event"] == "rung":
        return Rung(event.get("loss", float("nan")), event.get("failed", ""), event["seconds"])
    return None
