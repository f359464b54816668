"""The guard against spikes: which update went wrong, where to go back to, which batches to skip.

    each update: loss and gradient norm, kept on the device --> every so often: read by all ranks
        --> find_spike --> back to a checkpoint before it; its batches are never served again

As PaLM was trained (Chowdhery et al. 2022, section 5.1), where batches around a spike were skipped
by hand. Here it is a function of the losses alone: neither the times of looks nor those of
checkpoints change what comes out, so a resumed run skips what the unbroken one skips.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

HISTORY = 64
"""Good losses that a new one is compared with."""
LEAST_HISTORY = 16
PATIENCE = 5
"""Updates in a row that must lie far above: one hard batch is no spike."""
DEVIATIONS = 8.0
"""How far above the median is far, in robust standard deviations (1.4826 times the median absolute
deviation)."""
LEAST_DEVIATION = 0.02
"""Of the first loss: below that a deviation is noise, as where a training set is known by heart."""
SKIPPED_BEFORE = 8
"""Batches skipped before the update that was seen to go wrong: what led there came earlier."""
MOST_ROLL_BACKS = 3
CAPACITY = 1024
"""Updates between two looks, at most."""


@dataclass(frozen=True)
class Trend:
    """What the losses so far say about the next one."""

    first: float = 0.0
    recent: tuple[float, ...] = ()
    num_above: int = 0
    """How many in a row lay far above."""

    def is_far_above(self, loss: float) -> bool:
        """Whether a loss would be a spike if others like it followed."""
        if len(self.recent) < LEAST_HISTORY:
            return False
        median = statistics.median(self.recent)
        spread = 1.4826 * statistics.median(abs(loss - median) for loss in self.recent)
        least = LEAST_DEVIATION * max(abs(self.first), abs(median))
        return loss > median + DEVIATIONS * max(spread, least)

    def with_loss(self, loss: float) -> "Trend":
        """The trend after one more loss."""
        if self.is_far_above(loss):
            return replace(self, num_above=self.num_above + 1)
        first = self.first if self.recent else loss
        return Trend(first, (*self.recent, loss)[-HISTORY:])


@dataclass(frozen=True)
class Spike:
    """What went wrong."""

    update: int
    """The first update that went wrong, from 0."""
    seen_at: int
    """The one at which that was certain."""
    what: str
    value: float


@dataclass(frozen=True)
class Skips:
    """Batches of the stream that are not served, and how often it came to that."""

    ranges: tuple[tuple[int, int], ...] = ()
    """Batch numbers [start, stop), ascending."""
    num_roll_backs: int = 0

    def batch_of(self, update: int) -> int:
        """Number of the batch that an update takes."""
        for start, stop in self.ranges:
            update += (stop - start) * (update >= start)
        return update

    def with_spike(self, spike: Spike) -> "Skips":
        """Skip also what led to a spike."""
        start = self.batch_of(back_to(spike))
        stop = self.batch_of(spike.seen_at) + 1
        apart = [span for span in self.ranges if span[1] < start or span[0] > stop]
        joined = [span for span in self.ranges if span not in apart] + [(start, stop)]
        span = (min(low for low, _ in joined), max(high for _, high in joined))
        return Skips(tuple(sorted([*apart, span])), self.num_roll_backs + 1)


def back_to(spike: Spike) -> int:
    """The last step that is good: a checkpoint of it or before it is gone back to."""
    return max(0, spike.update - SKIPPED_BEFORE)


def follow(
    trend: Trend, step: int, losses: Sequence[float], norms: Sequence[float]
) -> tuple[Trend, Spike | None]:
    """Go through the updates that led from `step` on; up to a spike, if there is one."""
    for update, (loss, norm) in enumerate(zip(losses, norms, strict=True), step):
        for what, value in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                return trend, Spike(update, update, what, value)
        trend = trend.with_loss(loss)
        if trend.num_above == PATIENCE:
            return trend, Spike(update - PATIENCE + 1, update, "loss", loss)
    return trend, None


class Guard:
    """The losses since the last look, on the device, and the place of the guard.

    Reading a number from a GPU waits for all that is queued there, so they are kept there and read
    together, about twice a second.
    """

    def __init__(self, device: torch.device) -> None:
        self._kept = torch.zeros(CAPACITY, 3, dtype=torch.float64, device=device)
        self._num_kept = 0
        self.trend, self.skips = Trend(), Skips()
        self.is_on = False
        """Whether someone looks. Trials of a study are given up, not rolled back."""

    @property
    def is_full(self) -> bool:
        """Whether a look is due before the next update."""
        return self._num_kept == CAPACITY

    def note(self, sums_2: Tensor, norm: Tensor) -> None:
        """Keep one update's summed loss and weight on this rank, and the norm, without waiting."""
        if self.is_on:
            self._kept[self._num_kept, :2] = sums_2
            self._kept[self._num_kept, 2] = norm
            self._num_kept += 1

    def taken(self) -> Tensor:
        """What was kept since the last time [updates, 3]: loss, weight, norm."""
        kept, self._num_kept = self._kept[: self._num_kept], 0
        return kept

    def look(self, step: int, summed: Sequence[Sequence[float]], world_size: int) -> Spike | None:
        """Judge the updates that ended at `step`, from their sums over all ranks."""
        losses = [loss / weight if weight else math.nan for loss, weight, _ in summed]
        norms = [norm / world_size for _, _, norm in summed]
        self.trend, spike = follow(self.trend, step - len(losses), losses, norms)
        return spike

    def place(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"trend": asdict(self.trend), "skips": asdict(self.skips)}

    def resume(self, place: Mapping[str, Any]) -> None:
        """Take up the place of a checkpoint; an empty one is the beginning."""
        self._num_kept = 0
        trend, skips = place.get("trend", {}), place.get("skips", {})
        self.trend = Trend(**trend | {"recent": tuple(trend.get("recent", ()))})
        ranges = tuple((int(start), int(stop)) for start, stop in skips.get("ranges", ()))
        self.skips = Skips(ranges, skips.get("num_roll_backs", 0))
