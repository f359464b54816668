"""CSV and Parquet: records of columns with names."""

import csv
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from millrace.data.formats.opened import Found, Located, Opened, Record, Rejection, undecodable
from millrace.errors import SourceError

BATCH_BYTES = 2**24
LARGEST_BATCH = 1024


def read_csv(opened: Opened) -> Found:
    """A record for each row, its values text."""
    csv.field_size_limit(opened.source.max_record_bytes)
    lines = _CsvLines(opened)
    names: list[str] = []
    first = 1
    try:
        for row in csv.reader(lines, strict=True):
            number, first = first, lines.number + 1
            undecodable, lines.undecodable = lines.undecodable, ""
            if not row:
                continue
            if not names:
                names = _column_names(opened, row)
                if opened.source.header:
                    continue
            if undecodable:
                yield Rejection(opened.at(number), undecodable)
            elif len(row) == len(names):
                yield Located(opened.at(number), dict(zip(names, row, strict=True)))
            else:
                reason = f"{len(row)} fields where {len(names)} are expected"
                yield Rejection(opened.at(number), reason)
    except csv.Error as error:
        raise SourceError(
            f"read {opened.at(first)} as CSV",
            str(error),
            'Mend the quotes of the record that starts there (a quote inside a field is "")',
        ) from error


def _column_names(opened: Opened, row: list[str]) -> list[str]:
    names = row if opened.source.header else [str(i) for i in range(len(row))]
    if len(set(names)) < len(names):
        raise SourceError(
            f"read the header of {opened.file.path}",
            f"it names a column twice: {', '.join(names)}",
            "Rename one of them, or set `source.header: false` if the file has no header",
        )
    opened.refuse_missing(names)
    return names


class _CsvLines:
    """Lines for the csv module, which joins those of a quoted field again."""

    def __init__(self, opened: Opened) -> None:
        self._lines = self._decode(opened)
        self.number = 0
        """Of the line handed out last."""
        self.undecodable = ""
        """What was wrong with a line since this was last cleared."""

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def _decode(self, opened: Opened) -> Iterator[str]:
        for number, offset, line, encoding in opened.lines():
            self.number = number
            try:
                text = line.decode(encoding) + "\n"
            except UnicodeDecodeError as error:
                self.undecodable = undecodable(error, offset, encoding)
                text = line.decode(encoding, "replace") + "\n"
            # Old spreadsheets end their lines with a lone CR.
            yield from re.split(r"(?<=\r)(?!\n)", text) if "\r" in text[:-2] else (text,)


def read_parquet(opened: Opened) -> Found:
    """A record for each row; lists of numbers are arrays, categories what they stand for.

    A struct of `bytes` and `path`, which is how Hugging Face's datasets keep an image or a sound,
    becomes its bytes.
    """
    parquet, limit = pq.ParquetFile(opened.raw), opened.source.max_record_bytes
    opened.refuse_missing(parquet.schema_arrow.names)
    number = 0
    for batch in parquet.iter_batches(batch_size=_rows_at_once(parquet.metadata)):
        columns = [_values(column) for column in batch.columns]
        for values in zip(*columns, strict=True):
            number += 1
            record = dict(zip(batch.schema.names, values, strict=True))
            # Only a batch that is larger than a record may be can hold one that is.
            if batch.nbytes > limit and _longest(record) > limit:
                raise opened.oversized(opened.record(number))
            yield Located(opened.record(number), record)


def _rows_at_once(metadata: pq.FileMetaData) -> int:
    """Rows of about BATCH_BYTES, by the mean of the row group whose rows are longest."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(LARGEST_BATCH, BATCH_BYTES // max(1, longest)))


def _values(column: pa.Array) -> list[Any]:
    """A column's values as Python's, None where null."""
    kind = column.type
    if _is_list(kind) and (pa.types.is_integer(kind.value_type) or _is_float(kind.value_type)):
        # An array of a null is one of NaN, which no task takes.
        return [
            part.values.to_numpy(zero_copy_only=False) if part.is_valid else None for part in column
        ]
    values: list[Any] = column.to_pylist()
    if pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}:
        return [value and value["bytes"] for value in values]
    return values


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_float(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind))


def _longest(record: Record) -> int:
    return max((_num_bytes(value) for value in record.values()), default=0)


def _num_bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, str | bytes) else 0
