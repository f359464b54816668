"""Properties: fields of records that are no part of the task, but divide test records into slices.

Kept with the source files' ids, a number for each value, and not in the shards: to divide by
another field, source files are read again, but nothing is packed or trained.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from millrace.data.values import Record
from millrace.manifest import Manifest
from millrace.storage import Storage

FILE = "properties.npy"
NONE = "(none)"
MOST_CHARS = 60

Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Properties:
    """The values of some fields, record by record.

    Args:
        values: Of each field, the texts that occur, sorted.
        numbers: (records, fields) which of them.
    """

    values: tuple[tuple[str, ...], ...]
    numbers: Numbers

    @classmethod
    def of(cls, rows: Sequence[tuple[str, ...]], num_fields: int) -> "Properties":
        """From the texts of each record."""
        if not num_fields:
            return NOTHING
        columns = list(zip(*rows, strict=True)) or [()] * num_fields
        values = tuple(tuple(sorted(set(column))) for column in columns)
        places = [{text: number for number, text in enumerate(texts)} for texts in values]
        numbers = [
            [place[text] for text in column] for place, column in zip(places, columns, strict=True)
        ]
        return cls(values, np.array(numbers, np.int32).reshape(num_fields, len(rows)).T)

    @classmethod
    def join(cls, parts: Sequence["Properties"]) -> "Properties":
        """The records of all parts, one after the other; all have the same fields."""
        num_fields = len(parts[0].values)
        values = tuple(
            tuple(sorted({text for part in parts for text in part.values[i]}))
            for i in range(num_fields)
        )
        places = [{text: number for number, text in enumerate(texts)} for texts in values]
        return cls(values, np.concatenate([part._renumbered(places) for part in parts]))

    def _renumbered(self, places: Sequence[dict[str, int]]) -> Numbers:
        columns = [
            np.array([place[text] for text in texts], np.int32)[self.numbers[:, i]]
            for i, (place, texts) in enumerate(zip(places, self.values, strict=True))
        ]
        return np.stack(columns, axis=1)

    def __getitem__(self, records: slice) -> "Properties":
        """Those of some records; values that none of them has are left out."""
        rows = self.numbers[records].tolist()
        texts = [tuple(map(tuple.__getitem__, self.values, row)) for row in rows]
        return Properties.of(texts, len(self.values))

    def to_bytes(self) -> bytes:
        """The numbers, for a file beside the values."""
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(self.numbers), allow_pickle=False)
        return buffer.getvalue()

    @classmethod
    def load(cls, storage: Storage, source_files: Manifest) -> "Properties":
        """Those of a source_files manifest."""
        values = source_files.facts.get("properties", {}).values()
        if not values:
            return NOTHING
        numbers = np.load(io.BytesIO(source_files.file(FILE).read(storage)), allow_pickle=False)
        return cls(tuple(map(tuple, values)), numbers)


NOTHING = Properties((), np.zeros((0, 0), np.int32))
"""Of records that are divided by no field."""


def properties_of(record: Record, fields: Iterable[str]) -> tuple[str, ...]:
    """The fields' values as texts of one line; NONE where a record lacks one."""
    return tuple(_text(record.get(field)) for field in fields)


def _text(value: object) -> str:
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text[:MOST_CHARS]).strip() or NONE
