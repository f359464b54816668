"""A training that is killed at random moments until it has been often enough, then left to end.

Of the process tree (follower, launcher, ranks) one is killed -9 at a time; in between, all that is
left of it must be gone, and every checkpoint that can be seen must be readable.
"""

import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from millrace import manifest as manifests
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage
from tests.pipelines_for_tests import Tree, events

VICTIMS = ("millrace rank", "millrace train", "follower.json", "SIGTERM")
LATEST_SECONDS = 1.0
"""After an attempt's first checkpoint."""
STARTING_SHARE = 0.2
"""Of the kills: before the first step, while processes start."""


@dataclass
class Tally:
    """What a kill loop has met."""

    killed: Counter[str] = field(default_factory=Counter)
    """By who it was."""
    resumed_at: list[int] = field(default_factory=list)
    lost_seconds: list[float] = field(default_factory=list)
    """Of each kill in the loop: the time since the newest checkpoint's state was copied."""
    interval_seconds: list[float] = field(default_factory=list)
    """Between copies of checkpoints that followed one another."""
    num_strays: int = 0
    """Processes that outlived a kill by more than five seconds."""
    num_unreadable: int = 0
    """Checkpoints that were visible and damaged."""
    num_read: int = 0


def kill_again_and_again(job: Job, tree: Tree, num_kills: int, seed: int) -> Tally:
    """Start the job's training and kill it, so often; what then stands is for the next attempt.

    Raises:
        RuntimeError: It came to its end before: give it more steps.
    """
    draw = random.Random(seed)  # noqa: S311  a fixed seed, not a secret
    tally = Tally()
    for number in range(num_kills):
        is_early = draw.random() < STARTING_SHARE
        victim = VICTIMS[number % len(VICTIMS)]
        delay = draw.uniform(0, 6) if is_early else draw.uniform(0, LATEST_SECONDS)
        attempt = _Attempt(tally, is_early=is_early)
        following = tree.follow("train", job)
        reader = threading.Thread(target=attempt.read, args=(events(following),))
        reader.start()
        attempt.ready.wait(120)
        time.sleep(delay)
        _kill(tree, victim, draw)
        attempt.killed_at = time.monotonic()
        if not tree.is_gone():
            tally.num_strays += len(tree.pids())
            for pid in tree.pids():
                os.kill(pid, signal.SIGKILL)
        reader.join()
        if attempt.is_made:
            raise RuntimeError(f"the training ended before kill {number + 1} of {num_kills}")
        tally.killed[victim] += 1
        attempt.count()
        _read_checkpoints(job, tally)
    return tally


class _Attempt:
    """The events of one attempt, with their times."""

    def __init__(self, tally: Tally, *, is_early: bool) -> None:
        self._tally, self._is_early = tally, is_early
        self.ready, self.is_made, self.killed_at = threading.Event(), False, 0.0
        self._copied: list[float] = []
        if is_early:
            self.ready.set()

    def read(self, following: Any) -> None:
        """Read to the end, on a thread."""
        for event in following:
            now = time.monotonic()
            if event["event"] == "checkpoint":
                self._copied.append(now - event["write_seconds"])
                self.ready.set()
            elif event["event"] == "made":
                self.is_made = True
            elif event["event"] == "log" and "resumed from" in event["message"]:
                self._tally.resumed_at.append(int(event["message"].split()[6]))
        self.ready.set()

    def count(self) -> None:
        """Add what was lost to the tally."""
        copied = [at for at in self._copied if at <= self.killed_at]
        self._tally.interval_seconds += [b - a for a, b in pairwise(copied)]
        if copied:
            self._tally.lost_seconds.append(self.killed_at - copied[-1])


def _kill(tree: Tree, victim: str, draw: random.Random) -> None:
    """One process of that kind, if there is one yet; else any. SIGTERM is for the launcher."""
    is_notice = victim == "SIGTERM"
    pids = tree.pids("millrace train" if is_notice else victim) or tree.pids()
    if pids:
        pid = draw.choice(sorted(pids))
        try:
            os.kill(pid, signal.SIGTERM if is_notice else signal.SIGKILL)
        except ProcessLookupError:
            return


def _read_checkpoints(job: Job, tally: Tally) -> None:
    """Read every manifest that is visible and all that it names."""
    storage = FsspecStorage(job.store)
    folder = manifests.folder(job.pipeline, "checkpoint", job.key)
    for path in storage.list(folder):
        if path.endswith("/manifest.json"):
            tally.num_read += 1
            try:
                made: Manifest = manifests.read(storage, path)
                for file in made.files:
                    file.read(storage)
            except Exception:  # noqa: BLE001  whatever it is, the checkpoint cannot be read
                tally.num_unreadable += 1
