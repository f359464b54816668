"""How well probabilities rank a class above the others: the area under the ROC curve."""

import math

import numpy as np

from millrace.evaluation.intervals import Floats, Numbers


def macro_auroc(probabilities: Floats, labels: Numbers) -> float:
    """Mean of `auroc` over the classes, each against all others (Provost and Domingos 2000).

    Args:
        probabilities: (samples, classes).
        labels: (samples,)

    Returns:
        From 0 to 1, 0.5 by chance; a class that none or all samples are of does not count, and
        where none counts it is NaN.
    """
    present = [label for label in np.unique(labels) if (labels != label).any()]
    areas = [auroc(probabilities[:, label], labels == label) for label in present]
    return float(np.mean(areas)) if areas else math.nan


def auroc(scores: Floats, is_positive: Numbers) -> float:
    """Share of the pairs of a positive and a negative in which the positive scores higher.

    Equal scores count half: the U statistic of Mann and Whitney (1947) by the number of pairs.

    Args:
        scores: (samples,)
        is_positive: (samples,) bool; there is at least one of either.
    """
    distinct, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    del distinct
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    positives = int(is_positive.sum())
    above = mean_ranks[place][is_positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(scores) - positives)))
