"""A pool of warm worker processes: hands out rung jobs, replaces workers that die or fall silent.

waiting jobs --> the worker that keeps the training, else an idle one --> its rung event
                 dead, or silent for too long: killed, its job first in line, one attempt more
"""

import json
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from selectors import EVENT_READ, DefaultSelector
from types import TracebackType
from typing import Any, Self

from millrace.errors import ProcessFailedError, from_event
from millrace.launch import TAIL_LINES
from millrace.telemetry import emit, log, parse
from millrace.train.member import is_worth_another
from millrace.tune.connection import Connection, Start
from millrace.tune.rung import Rung, RungJob, Training

ATTEMPTS = 3
READ_BYTES = 2**16
START_SECONDS = 180.0
"""Until a new worker's first word: importing torch takes 2 s, on a crowded machine a minute."""
SILENCE_SECONDS = 15.0
"""Between two words of a busy worker, which says every `worker.ALIVE_SECONDS` that it lives."""
STUCK_SECONDS = 30 * 60.0
"""For a rung job, while nothing is known of how long one takes."""
STUCK_TIMES = 20
"""Times what a rung job should take by the slowest steps so far, and ..."""
LEAST_STUCK_SECONDS = 60.0
"""... at least so long: a first step may wait for data or a compiler."""

Ended = list[tuple[RungJob, Rung]]


@dataclass
class _Task:
    """A rung job and which attempt at it is made: what an earlier one says late is not heard."""

    job: RungJob
    attempt: int = 1
    lost_seconds: float = 0.0
    """Of earlier attempts: they have cost a worker's time, too."""

    def request(self) -> dict[str, Any]:
        job = self.job
        message = {
            "trial": job.trial,
            "repetition": job.repetition,
            "attempt": self.attempt,
            "values": job.values,
            "to": job.to,
        }
        return message | (
            {"max_seconds": job.max_seconds} if math.isfinite(job.max_seconds) else {}
        )

    def is_meant_by(self, event: dict[str, Any]) -> bool:
        told = (event["trial"], event["repetition"], event["attempt"])
        return told == (*self.job.training, self.attempt)


@dataclass(eq=False)
class _Worker:
    connection: Connection
    task: _Task | None = None
    trainings: set[Training] = field(default_factory=set)
    """Those it keeps in memory."""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    """Its last words that are no events."""
    began_at: float = 0.0
    """When it was given its job (monotonic seconds)."""
    heard_at: dict[int, float] = field(default_factory=dict)
    """When each of its ranks was given the job, or last said that it lives."""
    _unread: bytes = b""

    def begin(self, task: _Task) -> None:
        self.task, self.began_at = task, time.monotonic()
        self.heard_at = dict.fromkeys(self.heard_at, self.began_at)
        self.trainings.add(task.job.training)
        self.send(task.request())

    def send(self, message: dict[str, Any]) -> None:
        self.connection.write(json.dumps(message).encode() + b"\n")

    def lines(self) -> list[str] | None:
        """The whole lines that have come, or None when no more can.

        Lines are cut here, not by `readline`: the selector does not see what a buffer keeps back.
        """
        data = os.read(self.connection.fileno(), READ_BYTES)
        if not data:
            return None
        *whole, self._unread = (self._unread + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    @property
    def silent_since(self) -> float:
        """When the rank that has been silent for longest was last heard."""
        return min(self.heard_at.values(), default=self.began_at)


class WorkerPool:
    """Worker processes for one study, a `rung.Pool`; a context manager, so that none outlives it.

    Args:
        start: Starts a worker, here or elsewhere.
        size: Workers at most; each is started when there is something for it to do.
        silence_seconds: Between two words of a busy rank, after which it is taken for paused.
    """

    def __init__(self, start: Start, size: int, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._connect, self._size, self._silence_seconds = start, size, silence_seconds
        self._selector = DefaultSelector()
        self._workers: list[_Worker] = []
        self._waiting: deque[_Task] = deque()
        self._step_seconds = 0.0
        """The most that a step has taken in any rung job; 0 while none has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.connection.bury()
        self._selector.close()

    def submit(self, job: RungJob) -> None:
        """Take a job; return at once."""
        self._waiting.append(_Task(job))
        self._hand_out()

    def wait(self) -> Sequence[tuple[RungJob, Rung]]:
        """Those that have ended since the last time, at least one; a job must be in hand.

        A job that outlives several workers has failed, and its trial with it.

        Raises:
            ProcessFailedError: A worker ended with an error that is not Millrace's.
            MillraceError: A worker met an error that is no trial's outcome.
        """
        ended: Ended = []
        while not ended:
            assert self._waiting or any(worker.task for worker in self._workers), "nothing to do"
            for key, _ in self._selector.select(self._patience()):
                worker: _Worker = key.data
                lines = worker.lines()
                if lines is None:
                    ended += self._mourn(worker)
                else:
                    ended += self._hear(worker, lines)
            for worker in [worker for worker in self._workers if self._left(worker) <= 0]:
                ended += self._give_up(worker)
            self._hand_out()
        return ended

    def forget(self, training: Training) -> None:
        """Let the workers drop what they keep of a training."""
        for worker in self._workers:
            if training in worker.trainings:
                worker.trainings.discard(training)
                worker.send({"forget": training})

    def _start(self) -> _Worker:
        worker = _Worker(self._connect())
        self._workers.append(worker)
        self._selector.register(worker.connection, EVENT_READ, worker)
        return worker

    def _hand_out(self) -> None:
        for task in list(self._waiting):
            worker = self._worker_for(task.job.training)
            if worker is not None:
                self._waiting.remove(task)
                worker.begin(task)

    def _worker_for(self, training: Training) -> _Worker | None:
        """The worker that keeps it, else an idle or a new one; None while all are busy."""
        for worker in self._workers:
            if training in worker.trainings:
                return worker if worker.task is None else None
        idle = [worker for worker in self._workers if worker.task is None]
        if idle:
            return min(idle, key=lambda worker: len(worker.trainings))
        return self._start() if len(self._workers) < self._size else None

    def _hear(self, worker: _Worker, lines: Sequence[str]) -> Ended:
        """The rung that a worker tells of its task, if it does."""
        ended: Ended = []
        for event in filter(None, (_event(worker, line) for line in lines)):
            task = worker.task
            if task is None or not task.is_meant_by(event):
                continue
            worker.task = None
            rung = _rung(event)
            if not rung.failed:
                self._step_seconds = max(self._step_seconds, rung.step_seconds)
            ended.append((task.job, replace(rung, seconds=rung.seconds + task.lost_seconds)))
        return ended

    def _patience(self) -> float:
        """Seconds until some worker has been silent, or at its job, for too long."""
        return max(0.0, min((self._left(worker) for worker in self._workers), default=0.0))

    def _left(self, worker: _Worker) -> float:
        """Seconds that a worker may go on; infinite for an idle one."""
        if worker.task is None:
            return math.inf
        silence = self._silence_seconds if worker.heard_at else START_SECONDS
        stuck = STUCK_SECONDS
        if self._step_seconds:  # times all steps: it may have lost the training, and begin anew
            seconds = STUCK_TIMES * worker.task.job.to * self._step_seconds
            stuck = max(LEAST_STUCK_SECONDS, seconds)
        until = min(worker.silent_since + silence, worker.began_at + stuck)
        return until - time.monotonic()

    def _mourn(self, worker: _Worker) -> Ended:
        """What follows from a worker's end: none that ends by an error of its own is replaced."""
        code = worker.connection.wait()
        if code and not is_worth_another(code):
            asked = f"train {worker.task.job}" if worker.task else "keep a worker"
            words = "\n".join(worker.tail)
            raise ProcessFailedError(
                asked,
                f"its worker exited with {code}; its last words:\n{words}\n",
                "If the network is your own, look there; else it is a bug of Millrace: report it",
            )
        return self._replace(worker, f"died (exit status {code})")

    def _give_up(self, worker: _Worker) -> Ended:
        seconds = time.monotonic() - worker.silent_since
        if seconds < self._silence_seconds:
            return self._replace(worker, "came to no end")
        return self._replace(worker, f"has said nothing for {seconds:.3g} s")

    def _replace(self, worker: _Worker, why: str) -> Ended:
        """Put a worker's task first in line, or give it up; a new worker starts when needed."""
        self._selector.unregister(worker.connection)
        self._workers.remove(worker)
        worker.connection.bury()
        task = worker.task
        if task is None:
            log(f"an idle worker {why}")
            return []
        task.lost_seconds += time.monotonic() - worker.began_at
        if task.attempt == ATTEMPTS:
            failed = f"each of {ATTEMPTS} workers was lost over it; the last {why} (memory?)"
            return [(task.job, Rung(math.nan, 0, task.lost_seconds, failed))]
        log(f"a worker {why}: {task.job} to step {task.job.to} is handed on")
        task.attempt += 1
        self._waiting.appendleft(task)
        return []


def _rung(event: dict[str, Any]) -> Rung:
    """What a worker tells of a rung, passed on to whoever follows the study."""
    failed = event.get("failed", "")
    again = {"repetition": event["repetition"]} if event["repetition"] else {}
    loss = {} if failed else {"loss": event["loss"]}
    emit("rung", trial=event["trial"], **again, step=event["step"], **loss)
    return Rung(
        loss=event.get("loss", math.nan),
        step=event["step"],
        seconds=event["seconds"],
        failed=failed,
        memory_bytes=event.get("memory_bytes", 0),
        latency_seconds=event.get("latency_seconds", 0.0),
        step_seconds=event["seconds"] / max(1, event["steps"]),
    )


def _event(worker: _Worker, line: str) -> dict[str, Any] | None:
    """A rung event on a line; whatever else is said is passed on, or raised."""
    event = parse(line)
    if not line.strip():  # the emitter's, so that an event starts on a line of its own
        return None
    if event is None:
        worker.tail.append(line)
        log(line)
    elif event["event"] == "alive":
        worker.heard_at[event["rank"]] = time.monotonic()
    elif event["event"] == "log":
        log(event["message"])
    elif event["event"] == "error":
        raise from_event(event)
    elif event["event"] == "rung":
        return event
    return None
