"""Which classes are taken for which, and what that says of every class alike."""

import math

import numpy as np
import numpy.typing as npt

from millrace.evaluation.intervals import Numbers

Counts = npt.NDArray[np.int64]
"""(classes, classes): samples of each class (row) by the class they were taken for (column)."""


def confusion(labels: Numbers, answers: Numbers, num_classes: int) -> Counts:
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


def mcc(counts: Counts) -> float:
    """Matthews's correlation of labels and answers, for any number of classes (Gorodkin 2004).

    From -1 to 1; 0 where one class is all there is, or all that is answered: nothing was told.
    """
    table = counts.astype(np.float64)
    total, right = table.sum(), np.trace(table)
    asked, answered = table.sum(1), table.sum(0)
    spread = (total**2 - asked @ asked) * (total**2 - answered @ answered)
    return float((right * total - asked @ answered) / math.sqrt(spread)) if spread > 0 else 0.0
