"""Mean and deviation of the training inputs, added up unit by unit."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Statistics = list[list[float]]
"""For each channel or feature: how many numbers, their sum, the sum of their squares."""


def sum_inputs(inputs: npt.NDArray[np.float32]) -> Statistics:
    """Of inputs (samples, *shape), for each entry along the shape's first axis."""
    numbers = inputs.astype(np.float64).swapaxes(0, 1).reshape(inputs.shape[1], -1)
    counts = np.full(len(numbers), numbers.shape[1])
    sums: Statistics = np.stack([counts, numbers.sum(1), (numbers**2).sum(1)], axis=1).tolist()
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
