"""What a task takes from a record, and the way from there to stored columns.

    record --extract--> Value (the bytes that matter) --samples--> columns, a row per sample

Records with equal inputs have equal `split_id`s, so they can never fall into two splits; records
equal in inputs and label have equal `content_id`s, so exact duplicates are dropped.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from millrace.data.columns import Columns, Field

Record = Mapping[str, Any]


class UnusableRecordError(ValueError):
    """A record lacks what the task needs; the message says what."""


@dataclass(frozen=True)
class Value:
    """What the task takes from one record."""

    inputs: bytes
    label: str = ""
    properties: tuple[str, ...] = ()
    """What the gate divides records by, and the task does not look at."""

    @cached_property
    def split_id(self) -> int:
        """64-bit digest of the inputs."""
        return _id(self.inputs)

    @property
    def content_id(self) -> int:
        """64-bit digest of the inputs and the label."""
        # Of their digest: hashing is a quarter of the work of reading JSON lines.
        return _id(self.split_id.to_bytes(8, "little") + self.label.encode())


def _id(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass
class LabelIndex:
    """Label to number, in order of first sight."""

    classes: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def number(self, label: str) -> int:
        """The label's number, given now if it is new."""
        if label not in self._numbers:
            self._numbers[label] = len(self.classes)
            self.classes.append(label)
        return self._numbers[label]


class Encoder(Protocol):
    """A task's way from a record to stored columns."""

    fields: dict[str, Field]
    needs: tuple[str, ...]
    """The record's fields without which no record is usable."""
    label: str
    """The record's field that holds the class; empty for a task without classes."""
    facts: Mapping[str, Any]
    """What the shards' manifest says for a network, further to fields, classes and statistics."""

    def extract(self, record: Record) -> Value:
        """The task's part of a record; UnusableRecordError if it is missing or malformed."""

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        """The columns of the records' samples, in order."""


LABELLED = {"label": Field("int32"), "record": Field("uint64")}
"""The columns of every task with classes, beside its inputs."""


def labelled(values: Sequence[Value], labels: LabelIndex) -> Columns:
    """The columns of LABELLED."""
    numbers = np.array([labels.number(value.label) for value in values], np.int32)
    return {"label": numbers, "record": record_ids(values)}


def label_of(record: Record, name: str) -> str:
    """The class a record names; UnusableRecordError if it is missing or no printable text."""
    label = required(record, name)
    if not isinstance(label, str | int | float):
        raise UnusableRecordError(
            f"field `{name}` is {type(label).__name__}, a label is text or a number"
        )
    text = str(label)
    if not text or not text.isprintable():
        raise UnusableRecordError(f"field `{name}` is {text!r}, a label is printable text")
    return text


def required(record: Record, name: str) -> Any:
    """A field's value; UnusableRecordError if it is missing or null."""
    if name not in record:
        raise UnusableRecordError(
            f"no field `{name}`; the record has {', '.join(record) or 'none'}"
        )
    if record[name] is None:
        raise UnusableRecordError(f"field `{name}` is null")
    return record[name]


def text_of(record: Record, name: str) -> bytes:
    """A field's text as UTF-8; UnusableRecordError if it is none."""
    text = required(record, name)
    if not isinstance(text, str):
        raise UnusableRecordError(f"field `{name}` is {type(text).__name__}, text is needed")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UnusableRecordError(f"field `{name}` is not valid text: {error}") from error


def record_ids(values: Iterable[Value]) -> npt.NDArray[np.uint64]:
    """The `record` column: which samples are of one record."""
    return np.fromiter((value.split_id for value in values), np.uint64)
