"""Which sample comes when: a pure function of seed, epoch and position.

    frames --> chunks (runs that are fetched together) --> permuted by a key
           --> lanes (equal spans of the permuted samples; a batch takes as many from each)
           --> windows of chunks --> groups of frames, mixed over the window --> samples, shuffled

Ranks, workers and threads only choose which places they serve. So a step holds the same samples on
any world size, and the state of a stream is its step.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd

import numpy as np
import numpy.typing as npt

from millrace.errors import SpecError

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

CHUNK_BYTES = 4 * 2**20
"""Raw bytes of frames that are fetched together: a request costs as much as decoding a few MiB."""
MIX_BYTES = 64 * 2**20
"""Raw bytes of the frames whose samples are mixed at a time, over all lanes."""
LANES = 8
LANE_CHUNKS = 8
START_CHUNKS = 4
"""At least so many, over all lanes, are mixed from the first batch on."""
PERIOD = 1024
"""Places after which a mixture's pattern repeats: shares are exact to a thousandth."""
_GAMMA = 0x9E3779B97F4A7C15
_FEISTEL_ROUNDS = 4


def mix(words: Words | int, *key: int) -> Words:
    """Keyed hash of 64-bit words: splitmix64's finalizer (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        state = np.asarray(words, np.uint64)
        for part in (*key, 0):
            state = state + np.uint64((part + 1) * _GAMMA % 2**64)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def permute(places: Indices, size: int, *key: int) -> Indices:
    """Where a keyed permutation of range(size) puts `places`: O(1) memory for each.

    A Feistel network over the next power of four, walked until it lands inside the range (Black
    and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64(2**half - 1), np.uint64(half)
    keys = [int(mix(number, *key)) for number in range(_FEISTEL_ROUNDS)]
    found = places.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        left, right = found[outside] >> shift, found[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix_once(right, round_key) & mask)
        found[outside] = (left << shift) | right
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _mix_once(words: Words, key: int) -> Words:
    with np.errstate(over="ignore"):
        state = (words ^ np.uint64(key)) * np.uint64(0xBF58476D1CE4E5B9)
        return state ^ (state >> np.uint64(32))


def shuffled(size: int, *key: int) -> Indices:
    """A keyed permutation of range(size) as an array.

    numpy's RandomState is frozen (NEP 19), so every version gives the same; it takes a fifth of
    what sorting keyed hashes does.
    """
    bits = np.random.Philox(key=int(mix(0, *key)))
    return np.random.RandomState(bits).permutation(size).astype(np.int64, copy=False)


def chunk_starts(frame_bytes: Indices, breaks: Indices) -> Indices:
    """First frame of each chunk: runs of about CHUNK_BYTES raw that do not cross a shard's end.

    Args:
        frame_bytes: Raw bytes of each frame.
        breaks: First frame of each shard.
    """
    ends = np.cumsum(frame_bytes)
    shard = np.repeat(np.arange(len(breaks)), np.diff([*breaks, len(frame_bytes)]))
    before = ends - frame_bytes
    run = (before - before[breaks][shard]) // CHUNK_BYTES
    is_first = np.ones(len(frame_bytes), bool)
    is_first[1:] = (run[1:] != run[:-1]) | (shard[1:] != shard[:-1])
    return np.flatnonzero(is_first)


@dataclass(frozen=True)
class Group:
    """Frames whose samples are shuffled together.

    Args:
        parts: (frame, first sample, end of samples) of each frame, in the order they are laid out.
        place: Where the samples, once laid out, are taken from: the i-th comes from place[i].
    """

    parts: tuple[tuple[int, int, int], ...]
    place: Indices


@dataclass(frozen=True, eq=False)
class Layout:
    """What the order needs to know of a data set.

    Args:
        samples_per_frame: Samples in each frame.
        chunk_starts: First frame of each chunk.
        mean_frame_bytes: Raw.
    """

    samples_per_frame: Indices
    chunk_starts: Indices
    mean_frame_bytes: float

    @cached_property
    def sample_starts(self) -> Indices:
        """Number of the first sample of each frame, and of all samples."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.samples_per_frame)])

    @cached_property
    def chunk_samples(self) -> Indices:
        """Samples in each chunk."""
        starts = self.sample_starts[self.chunk_starts]
        return np.diff(np.append(starts, self.sample_starts[-1]))

    @property
    def num_samples(self) -> int:
        """Samples in one epoch."""
        return int(self.sample_starts[-1])


class Pattern:
    """Which source serves which place of a mixture, in the given shares.

    The places of a period are divided by largest remainder and shuffled; all periods are alike. So
    how many samples a source has served before any place is known without counting.

    Args:
        weights: Of each source; their sum does not matter.
        seed: Of the shuffle.

    Raises:
        SpecError: A share is too small to get one place of a period.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        period = PERIOD if len(weights) > 1 else 1
        shares = np.array(weights, np.float64) / sum(weights) * period
        counts = np.floor(shares).astype(np.int64)
        short = period - int(counts.sum())
        counts[np.argsort(counts - shares, kind="stable")[:short]] += 1
        if not counts.all():
            raise SpecError(
                f"mix sources by the weights {', '.join(f'{weight:g}' for weight in weights)}",
                f"{weights[int(np.argmin(counts))]:g} is less than one of {PERIOD} samples",
                "Raise it, or leave that source out",
            )
        slots = np.repeat(np.arange(len(counts)), counts)[shuffled(period, seed, period)]
        self._period, self._counts = period, counts
        served = np.cumsum(slots[None, :] == np.arange(len(counts))[:, None], axis=1)
        self._served = np.concatenate([np.zeros((len(counts), 1), np.int64), served], axis=1)

    def served(self, source: int, place: int) -> int:
        """Samples that `source` serves before `place`."""
        periods, rest = divmod(place, self._period)
        return periods * int(self._counts[source]) + int(self._served[source, rest])


def num_lanes(batch: int, num_chunks: int) -> int:
    """Lanes that a batch is taken from: a power of two that divides it, LANE_CHUNKS for each.

    Neighbouring lanes both decode the frame between them, so a small data set has few.
    """
    lanes = gcd(batch, LANES)
    while lanes > max(1, num_chunks // LANE_CHUNKS):
        lanes //= 2
    return lanes


class Epoch:
    """The order of one epoch: chunks permuted and cut into equal lanes."""

    def __init__(self, layout: Layout, seed: int, epoch: int, lanes: int) -> None:
        self._layout, self._key, self._lanes = layout, (seed, epoch), lanes
        num_chunks = len(layout.chunk_starts)
        self._chunks = permute(np.arange(num_chunks), num_chunks, *self._key)
        self._ends = np.cumsum(layout.chunk_samples[self._chunks])
        self.lane_samples = layout.num_samples // lanes
        frames = max(1, round(MIX_BYTES / max(1.0, layout.mean_frame_bytes) / lanes))
        self._group_frames = self._window_chunks = frames

    def groups(self, lane: int, start: int = 0) -> Iterator[tuple[int, Group]]:
        """The groups of a lane from the one that holds its sample `start` on.

        Yields:
            The number within the lane of the group's first sample, and the group.
        """
        low, high = lane * self.lane_samples, (lane + 1) * self.lane_samples
        first = int(np.searchsorted(self._ends, low, side="right"))
        last = int(np.searchsorted(self._ends, high, side="left"))
        bounds = self._window_bounds(lane, last + 1 - first)
        for number, (begin, end) in enumerate(pairwise(bounds)):
            stop = min(int(self._ends[first + end - 1]), high) - low
            if stop <= start:
                continue
            parts = self._parts(range(first + begin, first + end), low, high)
            at = max(int(self._ends[first + begin - 1]) if first + begin else 0, low) - low
            for group in self._window(parts, lane, number):
                if at + len(group) > start:
                    yield at, Group(group.parts, shuffled(len(group), *group.key))
                at += len(group)

    def _window_bounds(self, lane: int, num_chunks: int) -> list[int]:
        """Where windows begin, in chunks of the lane.

        The first window is short, so that the first batch comes soon; the second is shorter the
        lower the lane, so that lanes do not all refill at once.
        """
        size = self._window_chunks
        first = min(num_chunks, max(1, START_CHUNKS // self._lanes))
        second = first + max(1, size * (lane + 1) // self._lanes)
        return sorted({0, first, *range(second, num_chunks, size), num_chunks})

    def _parts(self, places: range, low: int, high: int) -> list[tuple[int, int, int]]:
        """Frames of the chunks at `places` of the permutation, cut to samples [low, high)."""
        layout, parts = self._layout, []
        bounds = np.append(layout.chunk_starts, len(layout.samples_per_frame))
        for place in places:
            chunk = int(self._chunks[place])
            at = int(self._ends[place] - layout.chunk_samples[chunk])
            for frame in range(int(bounds[chunk]), int(bounds[chunk + 1])):
                size = int(layout.samples_per_frame[frame])
                begin, end = max(low - at, 0), min(high - at, size)
                if begin < end:
                    parts.append((frame, begin, end))
                at += size
        return parts

    def _window(
        self, parts: list[tuple[int, int, int]], lane: int, number: int
    ) -> Iterator["_Parts"]:
        key = (*self._key, lane, number)
        mixed = [parts[i] for i in shuffled(len(parts), *key).tolist()]
        for i in range(0, len(mixed), self._group_frames):
            yield _Parts(tuple(mixed[i : i + self._group_frames]), (*key, i))


@dataclass(frozen=True)
class _Parts:
    parts: tuple[tuple[int, int, int], ...]
    key: tuple[int, ...]

    def __len__(self) -> int:
        return sum(end - begin for _, begin, end in self.parts)


def choose(samples_per_frame: Indices, number: int, seed: int) -> tuple[Indices, Indices]:
    """A seeded choice of samples from a few frames: (frame, index within it) of each.

    Frames are drawn until they hold four times as many samples as asked, or 16 of them.
    """
    frames = permute(np.arange(len(samples_per_frame)), len(samples_per_frame), seed)
    totals = np.cumsum(samples_per_frame[frames])
    few = max(16, 1 + bisect_right(totals[:16], 4 * number) if len(totals) else 0)
    while few < len(frames) and totals[few - 1] < number:
        few += 1
    frames = frames[:few]
    counts = samples_per_frame[frames]
    frame = np.repeat(frames, counts)
    index = np.arange(len(frame)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = shuffled(len(frame), seed, len(frame))[:number]
    return frame[chosen], index[chosen]
