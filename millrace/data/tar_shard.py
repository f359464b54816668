"""Samples as a WebDataset tar: files that share a key, each with an extension of its own."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from millrace.data.columns import Array, Columns, Field, Ragged, num_rows

_KINDS = {"text": "txt", "image": "image", "bytes": "bin"}


class TarShard:
    """A tar file while it is filled; the same samples give the same bytes.

    A sample has a `.cls` (its label's number), a `.npy` for its array, `.txt`, `.jpg` or `.png`,
    `.bin`, and a `.json` with all its other numbers (of 64 unsigned bits as text) and the label's
    name. Where several columns
    would have the same extension, their names come before it.

    Args:
        fields: Of the samples.
        classes: What the numbers in the column `label` stand for.
        about: What is told of the whole; a tar has no place for it.
    """

    overhead_bytes = 3 * 2 * tarfile.BLOCKSIZE
    """Of a sample, beside its columns: a header and some padding for each of its files."""

    def __init__(
        self, fields: Mapping[str, Field], classes: Sequence[str], about: Mapping[str, Any]
    ) -> None:
        self._fields, self._classes = fields, classes
        self._extensions = _name_extensions(fields)
        self._buffer = io.BytesIO()
        self._headers: dict[str, bytes] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes so far."""
        return self._buffer.tell()

    def add(self, columns: Columns, first: int) -> None:
        """Append samples, the first of which is number `first` of its split."""
        files = [self._column(name, columns[name]) for name in self._extensions]
        numbers = {
            name: _as_json(columns[name]) for name in self._fields if name not in self._extensions
        }
        for i in range(num_rows(columns)):
            key = f"{first + i:09}"
            for column in files:
                self._append(key, *next(column))
            facts = {name: values[i] for name, values in numbers.items()}
            if "label" in facts:
                self._append(key, "cls", str(facts["label"]).encode())
                facts["label"] = self._classes[facts["label"]]
            self._append(key, "json", json.dumps(facts, ensure_ascii=False).encode())

    def finish(self) -> bytes:
        """The whole file."""
        self._buffer.write(bytes(2 * tarfile.BLOCKSIZE))
        return self._buffer.getvalue()

    def _column(self, name: str, column: Any) -> Iterator[tuple[str, bytes]]:
        """(extension, bytes) of each sample's file."""
        extension = self._extensions[name]
        if isinstance(column, Ragged):
            for data in column.tolist():
                kind = "jpg" if data.startswith(b"\xff\xd8") else "png"
                yield extension.replace("image", kind), data
            return
        for row in column:
            yield extension, self._npy_header(name, row) + row.tobytes()

    def _npy_header(self, name: str, row: Array) -> bytes:
        """What precedes the numbers in a .npy file; the same for all of a column."""
        if name not in self._headers:
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(row), allow_pickle=False)
            self._headers[name] = buffer.getvalue()[: -row.nbytes or None]
        return self._headers[name]

    def _append(self, key: str, extension: str, data: bytes) -> None:
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(data)
        self._buffer.write(info.tobuf(tarfile.USTAR_FORMAT))
        self._buffer.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))


def _as_json(column: Array) -> list[Any]:
    """Numbers; unsigned ones of 64 bits as text, since most readers of JSON cannot hold them."""
    values: list[Any] = column.tolist()
    return [str(value) for value in values] if column.dtype == np.uint64 else values


def _name_extensions(fields: Mapping[str, Field]) -> dict[str, str]:
    """The extension of each column that gets files of its own."""
    kinds = {
        name: _KINDS.get(field.dtype, "npy")
        for name, field in fields.items()
        if field.shape or field.is_ragged
    }
    listed = list(kinds.values())
    return {
        name: kind if listed.count(kind) == 1 else f"{name}.{kind}" for name, kind in kinds.items()
    }
