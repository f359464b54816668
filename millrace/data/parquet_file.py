"""Samples as a Parquet file: compressed with zstd, a row group for every batch that is added."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from millrace.data.columns import Columns, Field, Ragged

LABEL_NUMBER = "label_number"
_RAGGED = {"text": pa.string(), "image": pa.binary(), "bytes": pa.binary()}


class ParquetFile:
    """A Parquet file while it is filled.

    An array becomes a list of fixed size whose field tells its `shape` in its metadata; a label
    becomes its class's name, `label`, and its number, `label_number`. The schema's metadata tell
    `about` under `millrace`.

    Args:
        fields: Of the samples.
        classes: What the numbers in the column `label` stand for.
        about: What is told of the whole.
    """

    overhead_bytes = 0
    """Of a sample, beside its columns."""

    def __init__(
        self, fields: Mapping[str, Field], classes: Sequence[str], about: Mapping[str, Any]
    ) -> None:
        self._classes = pa.array(classes, pa.string())
        self._schema = _build_schema(fields).with_metadata({"millrace": json.dumps(about)})
        self._buffer = io.BytesIO()
        self._writer = pq.ParquetWriter(self._buffer, self._schema, compression="zstd")

    @property
    def num_bytes(self) -> int:
        """Bytes so far."""
        return self._buffer.tell()

    def add(self, columns: Columns, first: int) -> None:
        """Append samples as a row group; their place in the split is their order."""
        arrays = []
        for field in self._schema:
            if field.name == "label":
                arrays.append(self._classes.take(pa.array(columns["label"])))
            else:
                name = "label" if field.name == LABEL_NUMBER else field.name
                arrays.append(_to_arrow(columns[name], field.type))
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def finish(self) -> bytes:
        """The whole file."""
        self._writer.close()
        return self._buffer.getvalue()


def _build_schema(fields: Mapping[str, Field]) -> pa.Schema:
    built = []
    for name, field in fields.items():
        if field.is_ragged:
            built.append(pa.field(name, _RAGGED[field.dtype], nullable=False))
            continue
        scalar = pa.from_numpy_dtype(np.dtype(field.dtype))
        if field.shape:
            kind = pa.list_(scalar, math.prod(field.shape))
            told = {"shape": json.dumps(field.shape)}
            built.append(pa.field(name, kind, nullable=False, metadata=told))
            continue
        if name == "label":
            built.append(pa.field(name, pa.string(), nullable=False))
        own_name = LABEL_NUMBER if name == "label" else name
        built.append(pa.field(own_name, scalar, nullable=False))
    return pa.schema(built)


def _to_arrow(column: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(column, Ragged):
        return column.arrow.cast(kind)
    flat = pa.array(np.ascontiguousarray(column).reshape(-1))
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return flat.cast(kind)
