"""What a task takes from a record, and the columns its samples are stored in.

    record --extract--> Value (the bytes that matter) --samples--> columns, a row per sample

Records with equal inputs have equal `split_id`s, so they can never fall into two splits; records
equal in inputs and label have equal `content_id`s, so exact duplicates are dropped.
"""

import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from millrace.data.columns import Array, Columns, Field
from millrace.errors import SourceError
from millrace.spec import ClassificationTask, LanguageModelTask, Task

Record = Mapping[str, Any]


class UnusableRecordError(ValueError):
    """A record lacks what the task needs; the message says what."""


@dataclass(frozen=True)
class Value:
    """What the task takes from one record."""

    inputs: bytes
    label: str = ""

    @property
    def split_id(self) -> int:
        """64-bit digest of the inputs."""
        return _id(self.inputs)

    @property
    def content_id(self) -> int:
        """64-bit digest of the inputs and the label."""
        return _id(self.inputs + b"\0" + self.label.encode())


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
        return _TextBlocks(task)
    return _LabelledArrays(task)


class _TextBlocks:
    """Texts cut into blocks of a fixed number of bytes; a text's last block is zero-padded."""

    def __init__(self, task: LanguageModelTask) -> None:
        self._text, self._block_bytes = task.text, task.block_bytes
        self.needs: tuple[str, ...] = (task.text,)
        self.fields = {
            "tokens": Field("uint8", (task.block_bytes,)),
            "length": Field("uint32"),
            "record": Field("uint64"),
        }

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
        size = self._block_bytes
        counts = [-(-len(value.inputs) // size) for value in values]
        tokens = np.zeros((sum(counts), size), np.uint8)
        length = np.full(sum(counts), size, np.uint32)
        flat, row = tokens.reshape(-1), 0
        for value, count in zip(values, counts, strict=True):
            start = row * size
            flat[start : start + len(value.inputs)] = np.frombuffer(value.inputs, np.uint8)
            row += count
            if count:  # an empty text has no last block
                length[row - 1] = len(value.inputs) - (count - 1) * size
        return {
            "tokens": tokens,
            "length": length,
            "record": np.repeat(_ids(values), counts),
        }


class _LabelledArrays:
    """Numbers or an image of a fixed shape, with the class they belong to."""

    def __init__(self, task: ClassificationTask) -> None:
        self._task = task
        self.needs: tuple[str, ...] = (task.label, *task.inputs)
        self.fields = {
            "inputs": Field("float32", task.shape),
            "label": Field("int32"),
            "record": Field("uint64"),
        }

    def extract(self, record: Record) -> Value:
        label = self._label(record)
        if isinstance(record.get("image"), bytes):
            return Value(self._pixels(record["image"]).tobytes(), label)
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

    def _label(self, record: Record) -> str:
        name = self._task.label
        label = _required(record, name)
        if not isinstance(label, str | int | float):
            raise UnusableRecordError(
                f"field `{name}` is {type(label).__name__}, a label is text or a number"
            )
        text = str(label)
        if not text or not text.isprintable():
            raise UnusableRecordError(f"field `{name}` is {text!r}, a label is printable text")
        return text

    def _pixels(self, data: bytes) -> npt.NDArray[np.float32]:
        """An image as float32 (channels, height, width), resized where the shape asks for it."""
        shape = self._task.shape
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise SourceError(
                f"read images as shape {list(shape)}",
                "an image's shape is [1 or 3, height, width]",
                "Correct `task.shape`",
            )
        try:
            with Image.open(io.BytesIO(data)) as image:
                sized = image.convert("L" if shape[0] == 1 else "RGB")
                if sized.size != (shape[2], shape[1]):
                    sized = sized.resize((shape[2], shape[1]))
                pixels = np.asarray(sized, np.float32)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnusableRecordError(f"not a readable image: {error}") from error
        return np.ascontiguousarray(pixels.reshape(shape[1], shape[2], shape[0]).transpose(2, 0, 1))

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        stacked = np.frombuffer(b"".join(value.inputs for value in values), np.float32)
        return {
            "inputs": stacked.reshape(len(values), *self._task.shape),
            "label": np.array([labels.number(value.label) for value in values], np.int32),
            "record": _ids(values),
        }


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
