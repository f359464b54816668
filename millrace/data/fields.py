"""The encoder of each task: what it takes from a record, and the columns it stores."""

from collections.abc import Callable
from typing import Any

from millrace.data.encoders import classification, language_model
from millrace.data.values import Encoder
from millrace.spec import Task

_ENCODERS: dict[str, Callable[[Any], Encoder]] = {
    "classification": classification.build,
    "language_model": language_model.build,
}


def build_encoder(task: Task) -> Encoder:
    """The encoder of a task."""
    return _ENCODERS[task.kind](task)
