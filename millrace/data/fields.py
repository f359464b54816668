"""The encoder of each task: what it takes from a record, and the columns it stores."""

from collections.abc import Callable
from typing import Any

from millrace.data.encoders import classification, language_model, maxcut, text_classification
from millrace.data.values import Encoder
from millrace.spec import LanguageModelTask, Task

_ENCODERS: dict[str, Callable[[Any], Encoder]] = {
    "classification": classification.build,
    "maxcut": maxcut.build,
    "text_classification": text_classification.build,
}


def build_encoder(task: Task, tokenizer: bytes = b"") -> Encoder:
    """The encoder of a task.

    Args:
        task: The task.
        tokenizer: Its tokenizer's file, if it has one and samples are to be made.
    """
    if isinstance(task, LanguageModelTask):
        return language_model.build(task, tokenizer)
    return _ENCODERS[task.kind](task)
