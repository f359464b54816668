"""Studies that are killed and paused at random moments until it has been often enough.

Of the process tree (follower, coordinator, warm workers) one is killed -9 at a time, or a worker
is stopped and perhaps let go on later. A study that comes to its end is compared with the unbroken
one, and the next begins.
"""

import contextlib
import os
import queue
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from millrace import manifest as manifests
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage
from tests.pipelines_for_tests import Tree, events

WORKER, COORDINATOR, FOLLOWER, PAUSE = (
    "millrace worker",
    "millrace tune",
    "follower.json",
    "SIGSTOP",
)
VICTIMS = (WORKER, PAUSE, COORDINATOR, WORKER, PAUSE, FOLLOWER)
STARTING_SHARE = 0.2
"""Of the kills: before the next rung, while processes start or train."""
RETURNING_SHARE = 0.5
"""Of the workers that were stopped: those that are let go on at the next kill."""
PATIENCE_SECONDS = 180.0
"""Without a rung or an end: the study hangs."""
MOST_ERRORS = 3
"""That no kill of the coordinator explains: with more the study would never end."""


@dataclass
class Tally:
    """What a kill loop has met."""

    killed: Counter[str] = field(default_factory=Counter)
    """By who it was."""
    num_attempts: int = 0
    num_studies: int = 0
    """That came to their end."""
    num_different: int = 0
    """Of these: another result than the unbroken one's."""
    num_running: int = 0
    """Trials that stayed RUNNING in a study that had ended."""
    num_miscounted: int = 0
    """Trials too many or too few, or told twice."""
    num_strays: int = 0
    """Processes that outlived an attempt by more than five seconds."""
    num_hangs: int = 0
    num_returned: int = 0
    """Stopped workers that went on later."""
    errors: list[str] = field(default_factory=list)
    """That ended an attempt of which only workers were killed or stopped."""

    @property
    def num_kills(self) -> int:
        """Of all kinds, pauses too."""
        return sum(self.killed.values())


def run_unbroken(job: Job, tree: Tree) -> Manifest:
    """What a study makes when nobody kills it."""
    attempt = _Attempt(tree, job)
    attempt.join()
    return manifests.read(FsspecStorage(job.store), attempt.made)


def trials_of(job: Job) -> list[tuple[int, str]]:
    """Number and state of each trial in a study's database, in the order of their numbers."""
    url = f"sqlite:///{Path(job.work, 'studies', job.pipeline)}.db"
    study = optuna.load_study(study_name=job.key, storage=url)
    trials = study.get_trials(deepcopy=False)
    return sorted((int(trial.user_attrs["trial"]), trial.state.name) for trial in trials)


class KillLoop:
    """Kills studies of one job.

    Args:
        job: What to run, by the key of the study.
        tree: All processes that are started here.
        unbroken: What the study makes when nobody kills it.
        seed: Of who is killed, and when.
        latest_seconds: After a rung was reached, when somebody is killed.
    """

    def __init__(
        self,
        job: Callable[[str], Job],
        tree: Tree,
        unbroken: Manifest,
        seed: int = 0,
        latest_seconds: float = 1.0,
    ) -> None:
        self.tally = Tally()
        self._job, self._tree, self._unbroken = job, tree, unbroken
        self._draw = random.Random(seed)  # noqa: S311  a fixed seed, not a secret
        self._latest_seconds = latest_seconds
        self._stopped: list[int] = []

    def run(self, num_kills: int) -> Tally:
        """Kill so often, then let the last study come to its end.

        Raises:
            RuntimeError: Studies end with errors again and again.
        """
        attempt = self._start()
        while self.tally.num_kills < num_kills:
            victim = VICTIMS[self.tally.num_kills % len(VICTIMS)]
            while not self._is_reached(attempt):  # it ended, or hangs
                attempt = self._next(attempt)
            if self._kill(victim):
                attempt.is_killed = True
                attempt.join()
                attempt = self._next(attempt)
        while not self._has_ended_well(attempt):
            attempt = self._next(attempt)
        self._count(attempt)
        return self.tally

    def _has_ended_well(self, attempt: "_Attempt") -> bool:
        while attempt.has_reached_rung(PATIENCE_SECONDS):
            pass
        self._end_hanging(attempt)
        attempt.join()
        return bool(attempt.made)

    def _start(self) -> "_Attempt":
        self.tally.num_attempts += 1
        return _Attempt(self._tree, self._job(f"killed-{self.tally.num_studies}"))

    def _next(self, attempt: "_Attempt") -> "_Attempt":
        """The attempt after one that is over."""
        self._count(attempt)
        return self._start()

    def _is_reached(self, attempt: "_Attempt") -> bool:
        """Wait for the moment of the next kill; whether the attempt still runs then."""
        is_early = self._draw.random() < STARTING_SHARE
        delay = (
            self._draw.uniform(0, 6) if is_early else self._draw.uniform(0, self._latest_seconds)
        )
        if not is_early and not attempt.has_reached_rung(PATIENCE_SECONDS):
            self._end_hanging(attempt)
            return False
        return not attempt.is_over(delay)

    def _kill(self, victim: str) -> bool:
        """Strike at one process of that kind, if there is one yet; else at the follower.

        Returns:
            Whether that ends the attempt.
        """
        self._let_go_on()
        found = self._tree.pids(WORKER if victim == PAUSE else victim)
        if not found:
            victim, found = FOLLOWER, self._tree.pids(FOLLOWER)
        if not found:  # the attempt has just come to its end
            return False
        pid = self._draw.choice(sorted(found))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP if victim == PAUSE else signal.SIGKILL)
        if victim == PAUSE:
            self._stopped.append(pid)
        self.tally.killed[victim] += 1
        return victim in (COORDINATOR, FOLLOWER)

    def _let_go_on(self) -> None:
        for pid in set(self._stopped) & set(self._tree.pids(WORKER)):
            if self._draw.random() < RETURNING_SHARE:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    self.tally.num_returned += 1
        self._stopped.clear()

    def _end_hanging(self, attempt: "_Attempt") -> None:
        if attempt.is_over(0):
            return
        self.tally.num_hangs += 1
        attempt.is_killed = True
        self._kill_all()
        attempt.join()

    def _kill_all(self) -> None:
        for pid in self._tree.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _count(self, attempt: "_Attempt") -> None:
        """Look at what an attempt that is over has left."""
        if not self._tree.is_gone():
            self.tally.num_strays += len(self._tree.pids())
            self._kill_all()
        if attempt.error and not attempt.is_killed:
            self.tally.errors.append(attempt.error)
            if len(self.tally.errors) > MOST_ERRORS:
                raise RuntimeError("; ".join(self.tally.errors))
        if not attempt.made:
            return
        made = manifests.read(FsspecStorage(attempt.job.store), attempt.made)
        trials = trials_of(attempt.job)
        expected = [trial["number"] for trial in self._unbroken.facts["trials"]]
        self.tally.num_different += made.facts != self._unbroken.facts
        self.tally.num_running += sum(state == "RUNNING" for _, state in trials)
        self.tally.num_miscounted += [number for number, _ in trials] != expected
        self.tally.num_studies += 1


class _Attempt:
    """A follower of the study, and what it has said."""

    def __init__(self, tree: Tree, job: Job) -> None:
        self.job, self.made, self.error = job, "", ""
        self.is_killed = False
        self._rungs: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(tree.follow("tune", job),))
        self._thread.start()

    def has_reached_rung(self, seconds: float) -> bool:
        """Whether it says within so many seconds that a trial has reached a rung."""
        while not self._rungs.empty():
            self._rungs.get()
        if self._ended.is_set():
            return False
        with contextlib.suppress(queue.Empty):
            return self._rungs.get(timeout=seconds)
        return False

    def is_over(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        return self._ended.wait(seconds)

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def _read(self, following: Any) -> None:
        for event in events(following):
            if event["event"] == "rung":
                self._rungs.put(True)
            elif event["event"] == "made":
                self.made = event["path"]
            elif event["event"] == "raised":
                self.error = f"asked: {event['asked']}; found: {event['found']}"
        self._ended.set()
        self._rungs.put(False)
