"""Text classification: texts of at most a fixed number of bytes, each with its class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from millrace.data.columns import Columns, Field
from millrace.data.values import (
    LABELLED,
    Encoder,
    LabelIndex,
    Record,
    Value,
    label_of,
    labelled,
    text_of,
)
from millrace.tasks import TextClassificationTask

LEAST_REST = 0.25
"""Of a block: a shorter end of a long text says too little of its class."""


def build(task: TextClassificationTask) -> Encoder:
    """The encoder of a text classification's task."""
    return _LabelledTexts(task)


class _LabelledTexts:
    """Texts as bytes, filled up with zeros; a long one is cut, or divided into several samples."""

    def __init__(self, task: TextClassificationTask) -> None:
        self._task, self._size = task, task.block_bytes
        self._most_blocks = 1 if task.longer == "cut" else 2**62
        self.label = task.label
        self.needs: tuple[str, ...] = (task.label, task.text)
        self.facts: Mapping[str, Any] = {}
        self.fields = {
            "text": Field("uint8", (task.block_bytes,)),
            "length": Field("uint32"),
            **LABELLED,
        }

    def extract(self, record: Record) -> Value:
        label = label_of(record, self._task.label)
        return Value(text_of(record, self._task.text).strip(), label)

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        whole = labelled(values, labels)
        counts = [self._num_blocks(len(value.inputs)) for value in values]
        lengths = [
            min(self._size, len(value.inputs) - start * self._size)
            for value, count in zip(values, counts, strict=True)
            for start in range(count)
        ]
        text = np.zeros((len(lengths), self._size), np.uint8)
        flat, row = text.reshape(-1), 0
        for value, count in zip(values, counts, strict=True):
            kept = np.frombuffer(value.inputs, np.uint8, min(len(value.inputs), count * self._size))
            flat[row * self._size : row * self._size + len(kept)] = kept
            row += count
        repeated = {name: np.repeat(column, counts) for name, column in whole.items()}
        return {"text": text, "length": np.array(lengths, np.uint32), **repeated}

    def _num_blocks(self, num_bytes: int) -> int:
        full, rest = divmod(num_bytes, self._size)
        return min(self._most_blocks, max(1, full + (rest >= LEAST_REST * self._size)))
