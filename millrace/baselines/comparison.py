"""The baselines of each task, on the samples that a checkpoint is evaluated on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.baselines import classification, language_model
from millrace.data.samples import Samples
from millrace.spec import Task

Floats = npt.NDArray[np.float64]
_COMPARISONS: dict[str, Callable[[Any, Samples, Samples], dict[str, Floats]]] = {
    "classification": classification.compare,
    "language_model": language_model.compare,
}


def compare(task: Task, train: Samples, test: Samples) -> dict[str, Floats]:
    """What each baseline, having seen the train split, adds up to on each test record.

    Of the same unit as the metric of the task's objective, records in stored order.
    """
    return _COMPARISONS[task.kind](task, train, test)
