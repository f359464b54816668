"""Looks: now and then all ranks compare what they noticed, and agree on what to do.

    SIGTERM on any rank, the budget, a checkpoint that is due, the losses since the last look
        --> one sum over all ranks --> the same decision everywhere

A look costs one collective and, on a GPU, a wait for the work that is queued there; twice a second
is less than a thousandth of the time. The first rank's clock says when the next one is.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from millrace.train.budget import Budget, Pace
from millrace.train.checkpoint import Checkpoints
from millrace.train.guard import CAPACITY, Guard, Spike
from millrace.train.notice import Notice
from millrace.train.proof import Witness
from millrace.train.world import World

LOOK_SECONDS = 0.5
FLAGS = 5


@dataclass(frozen=True)
class Seen:
    """What all ranks agreed on."""

    spike: Spike | None
    must_stop: bool
    """SIGTERM has come to one of them."""
    is_spent: bool
    """A limit of time or money is reached."""
    must_save: bool


class Lookout:
    """When to look, and what is seen.

    Args:
        world: The ranks.
        guard: Where the trainer keeps its losses.
        checkpoints: Asked whether one is still on its way, and what one costs.
        notice: Of this rank.
        pace: How often to checkpoint.
        budget: What may be spent.
        spent: Seconds spent by all attempts.
    """

    def __init__(
        self,
        world: World,
        guard: Guard,
        checkpoints: Checkpoints,
        notice: Notice,
        pace: Pace,
        budget: Budget,
        spent: Callable[[], float],
    ) -> None:
        self._world, self._guard, self._checkpoints = world, guard, checkpoints
        self._notice, self._pace, self._budget, self._spent = notice, pace, budget, spent
        self.stall_seconds = math.nan
        """What the loop waited for the last checkpoint."""
        self._step_seconds = math.nan

    def start(self, step: int) -> None:
        """Begin, or go back to, this step."""
        self._last_step, self._last_time = step, time.perf_counter()
        self._saved_at = step
        self._next = step + 1
        self.witness = Witness(step)

    def is_due(self, step: int) -> bool:
        """Whether all ranks look after this step."""
        return step >= self._next or self._guard.is_full

    def look(self, step: int) -> Seen:
        """Compare; every rank must come here after the same step."""
        flags = torch.zeros(FLAGS, dtype=torch.float64, device=self._world.device)
        flags[0], flags[1] = float(self._notice.has_come), float(self._checkpoints.is_busy)
        if self._world.is_first:
            now = time.perf_counter()
            self._step_seconds = (now - self._last_time) / max(1, step - self._last_step)
            is_spent = self._budget.is_spent(self._spent())
            every = self._interval()
            is_due = self._pace.is_due(step, self._saved_at, every)
            mine = (is_spent, is_due, self._steps_ahead(step, every))
            flags[2:] = torch.tensor(mine, dtype=torch.float64)
        kept = self._guard.taken()
        told = self._world.sum(torch.cat([flags, kept.flatten()])).tolist()
        stop, busy, spent, save, ahead = told[:FLAGS]
        summed = [told[start : start + 3] for start in range(FLAGS, len(told), 3)]
        self._last_step, self._last_time = step, time.perf_counter()
        self._next = step + int(ahead)
        self.witness.see(step, summed)
        spike = self._guard.look(step, summed, self._world.size)
        return Seen(spike, bool(stop), bool(spent), bool(save) and not busy)

    def saved(self, step: int, stall_seconds: float) -> None:
        """Count from here to the next checkpoint."""
        self._saved_at, self.stall_seconds = step, stall_seconds
        self.witness = Witness(step)

    def _interval(self) -> int:
        cost = self.stall_seconds + self._checkpoints.write_seconds
        return self._pace.interval(cost, self._step_seconds)

    def _steps_ahead(self, step: int, interval: int) -> int:
        """Steps to the next look: those of half a second, and at most twice those to this one.

        The first steps may tell little about the speed of later ones.
        """
        steps = int(LOOK_SECONDS / max(self._step_seconds, 1e-9))
        most = min(steps, 2 * max(1, step - self._last_step), CAPACITY)
        return self._pace.steps_left(step, interval, most)
