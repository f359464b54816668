"""What a task takes from a record, and the columns its samples are stored in.

    record --extract--> Value (the bytes that matter) --samples--> columns, a row per sample

Records with equal inputs have equal `split_id`s, so they can never fall into two splits; records
equal in inputs and label have equal `content_id`s, so exact duplicates are dropped.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from millrace.data.columns import Array, Column, Columns, Field, Ragged, smallest_unsigned
from millrace.data.images import pixels
from millrace.spec import ClassificationTask, LanguageModelTask, Task

Record = Mapping[str, Any]
IMAGE = "image"
"""The field of a record that holds a coded image."""


class UnusableRecordError(ValueError):
    """A record lacks what the task needs; the message says what."""


@dataclass(frozen=True)
class Value:
    """What the task takes from one record."""

    inputs: bytes
    label: str = ""

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

    def extract(self, record: Record) -> Value:
        """The task's part of a record; UnusableRecordError if it is missing or malformed."""

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        """The columns of the records' samples, in order."""


def build_encoder(task: Task) -> Encoder:
    """The encoder of a task."""
    if isinstance(task, LanguageModelTask):
        return _TokenBlocks(task) if task.tokens else _TextBlocks(task)
    return _LabelledNumbers(task) if task.images == "none" else _LabelledImages(task)


class _TextBlocks:
    """Texts cut into blocks of a fixed number of bytes; a text's last block is zero-padded."""

    def __init__(self, task: LanguageModelTask) -> None:
        self._text = task.text
        self.needs: tuple[str, ...] = (task.text,)
        self.fields = {"tokens": Field("uint8", (task.block_bytes,)), **_BLOCK}

    def extract(self, record: Record) -> Value:
        text = _required(record, self._text)
        if not isinstance(text, str):
            raise UnusableRecordError(
                f"field `{self._text}` is {type(text).__name__}, text is needed"
            )
        try:
            return Value(text.encode())
        except UnicodeEncodeError as error:
            raise UnusableRecordError(f"field `{self._text}` is not valid text: {error}") from error

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        return _blocks(values, self.fields["tokens"])


class _TokenBlocks:
    """Lists of token ids cut into blocks of a fixed number; the last block is zero-padded."""

    def __init__(self, task: LanguageModelTask) -> None:
        self._name, self._vocabulary = task.tokens, task.vocabulary
        self._dtype = smallest_unsigned(task.vocabulary - 1)
        self.needs: tuple[str, ...] = (task.tokens,)
        self.fields = {"tokens": Field(self._dtype, (task.block_tokens,)), **_BLOCK}

    def extract(self, record: Record) -> Value:
        listed = _required(record, self._name)
        if not isinstance(listed, list | np.ndarray):  # Parquet's lists come as arrays
            raise UnusableRecordError(
                f"field `{self._name}` is {type(listed).__name__}, a list of token ids is needed"
            )
        if not len(listed):
            return Value(b"")
        wrong = self._refused(listed)
        if wrong:
            raise UnusableRecordError(
                f"field `{self._name}` holds {wrong}, ids are whole numbers from 0 to "
                f"{self._vocabulary - 1}"
            )
        return Value(np.array(listed, self._dtype).tobytes())

    def _refused(self, listed: list[Any] | Array) -> str:
        """The first entry that is no id of the vocabulary, as it is shown; empty if all are."""
        try:
            ids = np.array(listed)
        except ValueError:  # lists of unequal lengths
            ids = np.array(listed, object)
        if ids.ndim == 1 and ids.dtype.kind in "iu":
            beyond = (ids < 0) | (ids >= self._vocabulary)
            return str(ids[np.argmax(beyond)]) if beyond.any() else ""
        entries = listed.tolist() if isinstance(listed, np.ndarray) else listed
        others = [each for each in entries if type(each) is not int]
        return repr(others[0] if others else max(entries))[:40]

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        return _blocks(values, self.fields["tokens"])


_BLOCK = {"length": Field("uint32"), "record": Field("uint64")}


def _blocks(values: Sequence[Value], told: Field) -> Columns:
    """Values cut into blocks as the field says, and how much of each block is theirs."""
    (size,), dtype = told.shape, np.dtype(told.dtype)
    lengths = [len(value.inputs) // dtype.itemsize for value in values]
    counts = [-(-length // size) for length in lengths]
    tokens = np.zeros((sum(counts), size), dtype)
    length = np.full(sum(counts), size, np.uint32)
    flat, row = tokens.reshape(-1), 0
    for value, num_tokens, count in zip(values, lengths, counts, strict=True):
        start = row * size
        flat[start : start + num_tokens] = np.frombuffer(value.inputs, dtype)
        row += count
        if count:  # an empty text has no last block
            length[row - 1] = num_tokens - (count - 1) * size
    return {"tokens": tokens, "length": length, "record": np.repeat(_ids(values), counts)}


class _LabelledNumbers:
    """Numbers laid out in a fixed shape, with the class they belong to."""

    def __init__(self, task: ClassificationTask) -> None:
        self._task = task
        self.needs: tuple[str, ...] = (task.label, *task.inputs)
        self.fields = {"inputs": Field("float32", task.shape), **_LABELLED}

    def extract(self, record: Record) -> Value:
        label = _label(record, self._task.label)
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
        return {"inputs": inputs, **_labelled(values, labels)}


class _LabelledImages:
    """Images with the class they belong to: their pixels, or JPEG and PNG as they came."""

    def __init__(self, task: ClassificationTask) -> None:
        self._task, self._is_coded = task, task.images == "coded"
        self.needs: tuple[str, ...] = (task.label, IMAGE)
        dtype = "image" if self._is_coded else "uint8"
        self.fields = {"inputs": Field(dtype, task.shape), **_LABELLED}

    def extract(self, record: Record) -> Value:
        label = _label(record, self._task.label)
        data = _required(record, IMAGE)
        if not isinstance(data, bytes):
            raise UnusableRecordError(
                f"field `{IMAGE}` is {type(data).__name__}, an image's bytes are needed"
            )
        try:
            found = pixels(data, self._task.shape)
        except ValueError as error:
            raise UnusableRecordError(str(error)) from error
        return Value(data if self._is_coded else found.tobytes(), label)

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        stored = Ragged.of([value.inputs for value in values])
        shape = (len(values), *self._task.shape)
        inputs: Column = stored if self._is_coded else stored.data.reshape(shape)
        return {"inputs": inputs, **_labelled(values, labels)}


_LABELLED = {"label": Field("int32"), "record": Field("uint64")}


def _labelled(values: Sequence[Value], labels: LabelIndex) -> Columns:
    numbers = np.array([labels.number(value.label) for value in values], np.int32)
    return {"label": numbers, "record": _ids(values)}


def _label(record: Record, name: str) -> str:
    label = _required(record, name)
    if not isinstance(label, str | int | float):
        raise UnusableRecordError(
            f"field `{name}` is {type(label).__name__}, a label is text or a number"
        )
    text = str(label)
    if not text or not text.isprintable():
        raise UnusableRecordError(f"field `{name}` is {text!r}, a label is printable text")
    return text


def _required(record: Record, name: str) -> Any:
    if name not in record:
        raise UnusableRecordError(
            f"no field `{name}`; the record has {', '.join(record) or 'none'}"
        )
    if record[name] is None:
        raise UnusableRecordError(f"field `{name}` is null")
    return record[name]


def _numbers(record: Record, name: str) -> float | Array:
    """A field's number, or the numbers of its array in their order."""
    value = _required(record, name)
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


def _ids(values: Iterable[Value]) -> npt.NDArray[np.uint64]:
    return np.fromiter((value.split_id for value in values), np.uint64)
