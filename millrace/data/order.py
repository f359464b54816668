"""Which sample comes when: a pure function of seed, epoch and position.

Frames are permuted, joined into groups, and the samples of a group shuffled fully. Ranks and
loaders only choose which positions they serve, so a step holds the same samples on any world size,
and the place in the stream is one integer.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
GROUP_FRAMES = 16


@dataclass(frozen=True)
class Order:
    """The order of the samples of a data set, epoch after epoch."""

    samples_per_frame: tuple[int, ...]
    seed: int
    group_frames: int = GROUP_FRAMES

    @property
    def num_samples(self) -> int:
        """Samples in one epoch."""
        return sum(self.samples_per_frame)

    def locate(self, epoch: int, start: int, stop: int) -> tuple[Indices, Indices]:
        """Frame number and index within the frame of positions [start, stop) of an epoch."""
        frames, indices = [], []
        for group, first, size in _groups(self, epoch):
            low, high = max(start, first), min(stop, first + size)
            if low < high:
                frame, index = _shuffled(self, epoch, group)
                frames.append(frame[low - first : high - first])
                indices.append(index[low - first : high - first])
        return np.concatenate(frames), np.concatenate(indices)


@lru_cache(maxsize=4)
def _groups(order: Order, epoch: int) -> tuple[tuple[int, int, int], ...]:
    """(group number, position of its first sample, samples in it) of an epoch."""
    counts = np.array(order.samples_per_frame)[_permuted_frames(order, epoch)]
    sizes = np.add.reduceat(counts, np.arange(0, len(counts), order.group_frames))
    firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return tuple(
        (group, int(first), int(size))
        for group, (first, size) in enumerate(zip(firsts, sizes, strict=True))
    )


@lru_cache(maxsize=4)
def _permuted_frames(order: Order, epoch: int) -> Indices:
    rng = np.random.default_rng([order.seed, epoch])
    return rng.permutation(len(order.samples_per_frame))


@lru_cache(maxsize=4)
def _shuffled(order: Order, epoch: int, group: int) -> tuple[Indices, Indices]:
    """Frame number and index within it of a group's samples, in their order."""
    start = group * order.group_frames
    members = _permuted_frames(order, epoch)[start : start + order.group_frames]
    counts = np.array(order.samples_per_frame)[members]
    frame = np.repeat(members, counts)
    index = np.concatenate([np.arange(count) for count in counts])
    place = np.random.default_rng([order.seed, epoch, group]).permutation(len(frame))
    return frame[place], index[place]
