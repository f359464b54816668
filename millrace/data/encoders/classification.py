"""Classification: numbers laid out in a shape, or images, each with its class."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.data.columns import Array, Column, Columns, Field, Ragged
from millrace.data.images import array_pixels, pixels
from millrace.data.values import (
    LABELLED,
    Encoder,
    LabelIndex,
    Record,
    UnusableRecordError,
    Value,
    label_of,
    labelled,
    required,
)
from millrace.tasks import ClassificationTask

IMAGE = "image"
"""The field of a record that holds an image, coded or as an array."""


def build(task: ClassificationTask) -> Encoder:
    """The encoder of a classification's task."""
    return _LabelledNumbers(task) if task.images == "none" else _LabelledImages(task)


class _LabelledNumbers:
    """Numbers laid out in a fixed shape, with the class they belong to."""

    def __init__(self, task: ClassificationTask) -> None:
        self._task = task
        self.label = task.label
        self.facts: Mapping[str, Any] = {}
        self.needs: tuple[str, ...] = (task.label, *task.inputs)
        self.fields = {"inputs": Field("float32", task.shape), **LABELLED}

    def extract(self, record: Record) -> Value:
        label = label_of(record, self._task.label)
        if isinstance(record.get("image"), bytes):
            raise UnusableRecordError("it is an image: set `task.images: pixels` (or `coded`)")
        names = self._task.inputs or _all_but(self._task.label, tuple(record))
        with np.errstate(over="ignore"):  # too large a number becomes infinite and is refused
            parts = [_numbers(record, name) for name in names]
            numbers = _flat(parts)
        if numbers.size != math.prod(self._task.shape):
            raise UnusableRecordError(
                f"{numbers.size} inputs do not fill the shape {list(self._task.shape)}"
            )
        if not np.isfinite(numbers).all():
            with np.errstate(over="ignore"):
                name = next(
                    name
                    for name, part in zip(names, parts, strict=True)
                    if not np.isfinite(_flat([part])).all()
                )
            shown = " ".join(str(record[name]).split())[:40]
            raise UnusableRecordError(f"field `{name}` is {shown}, a finite number is needed")
        return Value(numbers.tobytes(), label)

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        stacked = np.frombuffer(b"".join(value.inputs for value in values), np.float32)
        inputs = stacked.reshape(len(values), *self._task.shape)
        return {"inputs": inputs, **labelled(values, labels)}


class _LabelledImages:
    """Images with the class they belong to: their pixels, or JPEG and PNG as they came."""

    def __init__(self, task: ClassificationTask) -> None:
        self._task, self._is_coded = task, task.images == "coded"
        self.label = task.label
        self.facts: Mapping[str, Any] = {}
        self.needs: tuple[str, ...] = (task.label, IMAGE)
        dtype = "image" if self._is_coded else "uint8"
        self.fields = {"inputs": Field(dtype, task.shape), **LABELLED}

    def extract(self, record: Record) -> Value:
        label = label_of(record, self._task.label)
        data = required(record, IMAGE)
        is_array = isinstance(data, np.ndarray)
        if not isinstance(data, bytes) and (self._is_coded or not is_array):
            raise UnusableRecordError(
                f"field `{IMAGE}` is {type(data).__name__}, an image's bytes are needed"
                + (": set `task.images: pixels`" if is_array else "")
            )
        try:
            found = (array_pixels if is_array else pixels)(data, self._task.shape)
        except ValueError as error:
            raise UnusableRecordError(str(error)) from error
        return Value(data if self._is_coded else found.tobytes(), label)

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        stored = Ragged.of([value.inputs for value in values])
        shape = (len(values), *self._task.shape)
        inputs: Column = stored if self._is_coded else stored.data.reshape(shape)
        return {"inputs": inputs, **labelled(values, labels)}


def _numbers(record: Record, name: str) -> float | Array:
    """A field's number, or the numbers of its array in their order."""
    value = required(record, name)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise UnusableRecordError(f"field `{name}` is of {value.dtype}, a number is needed")
        return value.reshape(-1)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        shown = repr(value)[:40]
        raise UnusableRecordError(f"field `{name}` is {shown}, a number is needed") from error


def _flat(parts: Sequence[float | Array]) -> npt.NDArray[np.float32]:
    if any(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([np.atleast_1d(part) for part in parts]).astype(np.float32)
    return np.array(parts, np.float32)


@lru_cache(maxsize=16)
def _all_but(label: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The other names in natural order (`x2` before `x10`), whatever their order in the record.

    Files whose columns, and JSON objects whose keys, stand in another order give equal samples.
    """
    digits = re.compile(r"(\d+)")

    def key(name: str) -> list[tuple[int, str]]:
        # Every second piece is a number.
        return [
            (int(part), "") if i % 2 else (0, part) for i, part in enumerate(digits.split(name))
        ]

    return tuple(sorted((name for name in names if name != label), key=key))
