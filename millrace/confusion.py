"""Which classes are taken for which, and what that says of every class alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
"""(classes, classes): samples of each class (row) by the class they were taken for (column)."""


def confusion(labels: Labels, answers: Labels, num_classes: int) -> Counts:
    """Count the answers given to the samples of each class."""
    pairs = labels * num_classes + answers
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def macro_f1(counts: Counts) -> float:
    """Mean over the classes of the harmonic mean of precision and recall.

    A rare class counts as much as a frequent one; one that neither occurs nor is answered does not
    count.
    """
    right, both = np.diag(counts), counts.sum(0) + counts.sum(1)
    return float((2 * right[both > 0] / both[both > 0]).mean())


def class_facts(labels: Labels, answers: Labels, classes: Sequence[str]) -> dict[str, Any]:
    """What an evaluation tells of its classes."""
    counts = confusion(labels, answers, len(classes))
    return {"classes": list(classes), "confusion": counts.tolist(), "macro_f1": macro_f1(counts)}
