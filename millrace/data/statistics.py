"""Mean and deviation of the training inputs, added up sample by sample and unit by unit."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Statistics = list[list[float]]
"""For each channel or feature: how many numbers, their sum, the sum of their squares."""
SLICE_NUMBERS = 2**18
"""Numbers that are turned into float64 at once."""


class InputSums:
    """Sums over inputs that come in parts; the same, to the bit, however they were parted."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: npt.NDArray[np.float64] | None = None

    def add(self, inputs: npt.NDArray[Any]) -> None:
        """Add inputs (samples, *shape), for each entry along the shape's first axis."""
        flat = inputs.reshape(*inputs.shape[:2], math.prod(inputs.shape[2:]))
        step = max(1, SLICE_NUMBERS // (flat.shape[1] * flat.shape[2]))
        for start in range(0, len(flat), step):
            numbers = flat[start : start + step].astype(np.float64)
            each = np.stack([numbers.sum(2), (numbers**2).sum(2)])
            if self._sums is not None:
                each = np.concatenate([self._sums[:, None], each], axis=1)
            # Strictly one after the other: a sum by halves depends on where a part begins.
            self._sums = np.add.accumulate(each, axis=1)[:, -1]
        self._count += len(flat) * flat.shape[2]

    def to_list(self) -> Statistics:
        """The sums; empty where there were no inputs."""
        if self._sums is None:
            return []
        counts = np.full(self._sums.shape[1], self._count)
        sums: Statistics = np.stack([counts, *self._sums], axis=1).tolist()
        return sums


def mean_and_deviation(units: Sequence[Statistics]) -> tuple[list[float], list[float]]:
    """Over all units that have training inputs; a constant's deviation is 1."""
    summed = [unit for unit in units if unit]
    if not summed:
        return [], []
    counts, totals, squares = np.sum(summed, axis=0).T
    mean = totals / counts
    variance = squares / counts - mean**2
    is_constant = variance <= 1e-12 * np.maximum(mean**2, 1)
    deviation = np.where(is_constant, 1.0, np.sqrt(np.maximum(variance, 0)))
    return mean.tolist(), deviation.tolist()
