"""The baselines of each task, on the samples that a checkpoint is evaluated on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.baselines import classification, language_model, maxcut, text_classification
from millrace.data.samples import Samples
from millrace.spec import LanguageModelTask, Task

Floats = npt.NDArray[np.float64]
_COMPARISONS: dict[str, Callable[[Any, Samples, Samples], dict[str, Floats]]] = {
    "classification": classification.compare,
    "maxcut": maxcut.compare,
    "text_classification": text_classification.compare,
}


def compare(task: Task, train: Samples, test: Samples, tokenizer: bytes = b"") -> dict[str, Floats]:
    """What each baseline, having seen the train split, adds up to on each test record.

    Of the same unit as the metric of the task's objective, records in stored order.

    Args:
        task: The task.
        train: What a baseline may learn from.
        test: What it is asked.
        tokenizer: The file of the tokenizer that texts were encoded with, if they were.
    """
    if isinstance(task, LanguageModelTask):
        return language_model.compare(task, train, test, tokenizer)
    return _COMPARISONS[task.kind](task, train, test)
