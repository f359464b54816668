"""Read one source file as records: text, JSONL, CSV, Parquet, images or FASTA; plain, gz or zst.

    bytes -> told by their first bytes whether compressed -> decoded text -> records
                                                                          -> rejections, by line

A file that is damaged as a whole (torn compression, no such column) is an error naming it; a single
bad record is rejected and counted, never silently dropped. Lines end at LF alone.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.asyn import AsyncFileSystem

from millrace.data.listing import SourceFile
from millrace.data.source_reader import SourceReader
from millrace.errors import NotFoundError, SourceError, StorageError
from millrace.filesystem import open_filesystem
from millrace.spec import SourceSpec

Record = dict[str, Any]
READ_BYTES = 2**20
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16 LE, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Without a mark, the names that stand for "see the mark" mean the little-endian form.
_MARKLESS = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}
_FORMATS = {
    "txt": "text", "text": "text", "md": "text", "py": "text", "log": "text",
    "jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "parquet": "parquet",
    "png": "image", "jpg": "image", "jpeg": "image", "bmp": "image", "gif": "image",
    "fa": "fasta", "fna": "fasta", "fasta": "fasta", "faa": "fasta",
}  # fmt: skip


class Located(NamedTuple):
    """A record and where it stands: `a.jsonl:12` by line, `a.parquet, record 12`, or `a.png`."""

    where: str
    record: Record


@dataclass(frozen=True)
class Rejection:
    """A record that cannot be used, where it stands, and why."""

    where: str
    reason: str


Found = Iterator[Located | Rejection]


def read_records(file: SourceFile, source: SourceSpec, needs: Sequence[str] = ()) -> Found:
    """The file's records in order, with a Rejection in place of each bad one.

    `needs` names columns that a file with a header or schema must have.

    Raises:
        SourceError: The file is missing, damaged, of unknown format, lacks a column, or holds an
            oversized record.
    """
    read = _READERS[format_of(file, source)]
    asked = f"read the source file {file.path} ({file.num_bytes} bytes)"
    try:
        with _open(file) as raw:
            yield from read(_Opened(file, source, raw, tuple(needs)))
    except (FileNotFoundError, NotFoundError) as error:
        raise SourceError(asked, "it is gone", "It was removed since it was listed") from error
    except StorageError as error:
        raise SourceError(asked, error.found, "Check that the place answers; then again") from error
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(asked, reason, _DAMAGED) from error


def _open(file: SourceFile) -> IO[bytes]:
    filesystem, path = open_filesystem(file.url)
    if isinstance(filesystem, AsyncFileSystem):
        # fsspec's own buffered readers fetch 50 MiB for 1 KiB, and take a truncated body for data.
        return io.BufferedReader(SourceReader(file), READ_BYTES)
    opened: IO[bytes] = filesystem.open(path, "rb")
    return opened


_DAMAGED = "Replace it with a whole copy or leave it out with `source.exclude`"


def format_of(file: SourceFile, source: SourceSpec) -> str:
    """The format the file is read in: as the spec says, else by its extension."""
    if source.format != "auto":
        return source.format
    parts = file.path.rsplit("/", 1)[-1].lower().split(".")
    extension = parts[-2] if parts[-1] in ("gz", "zst") and len(parts) > 2 else parts[-1]
    if extension not in _FORMATS:
        raise SourceError(
            f"tell the format of {file.path} by its extension",
            f"`{extension}` is none of {', '.join(sorted(_FORMATS))}",
            "Set `source.format`, or narrow `source.url` to the files you mean",
        )
    return _FORMATS[extension]


@dataclass
class _Opened:
    """An open source file, its bytes decompressed as they are read."""

    file: SourceFile
    source: SourceSpec
    raw: IO[bytes]
    needs: tuple[str, ...]

    def stream(self) -> IO[bytes]:
        head = self.raw.read(4)
        self.raw.seek(0)
        for magic, codec in _COMPRESSIONS.items():
            if head.startswith(magic):
                # Arrow's reader is the one that reports a torn gz or zstd stream as an error.
                plain: IO[bytes] = pa.CompressedInputStream(pa.PythonFile(self.raw), codec)
                return plain
        return self.raw

    def encoding(self, head: bytes) -> tuple[str, int]:
        """The text's encoding and the length of its byte-order mark."""
        for mark, name in _BOMS:
            if head.startswith(mark):
                return name, len(mark)
        name = codecs.lookup(self.source.encoding).name
        return _MARKLESS.get(name, name), 0

    def whole(self) -> bytes:
        """All decompressed bytes, at most `max_record_bytes`."""
        stream, limit = self.stream(), self.source.max_record_bytes
        parts, size = [], 0
        while part := stream.read(READ_BYTES):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise self.oversized(self.file.path)
        return b"".join(parts)

    def lines(self) -> Iterator[tuple[int, int, bytes, str]]:
        """(line number from 1, byte offset, line without its end, encoding), split at LF only."""
        stream, rest, offset, number = self.stream(), b"", 0, 1
        encoding, newline, limit = "", b"\n", self.source.max_record_bytes
        while part := stream.read(READ_BYTES):
            if not encoding:
                encoding, offset = self.encoding(part)
                part, newline = part[offset:], "\n".encode(encoding)
            *lines, rest = _split(rest + part, newline)
            for line in lines:
                if len(line) > limit:
                    raise self.oversized(self.at(number))
                yield number, offset, line, encoding
                number, offset = number + 1, offset + len(line) + len(newline)
            if len(rest) > limit:
                raise self.oversized(self.at(number))
        if rest:
            yield number, offset, rest, encoding

    def texts(self) -> Iterator[tuple[int, str] | Rejection]:
        """(line number, decoded line without CR), or the rejection of an undecodable one."""
        for number, offset, line, encoding in self.lines():
            try:
                yield number, line.decode(encoding).removesuffix("\r")
            except UnicodeDecodeError as error:
                yield Rejection(self.at(number), _undecodable(error, offset, encoding))

    def at(self, line: int) -> str:
        return f"{self.file.path}:{line}"

    def record(self, number: int) -> str:
        return f"{self.file.path}, record {number}"

    def refuse_missing(self, names: Sequence[str]) -> None:
        """A column that the task needs and the whole file lacks is one error."""
        missing = [f"`{need}`" for need in self.needs if need not in names]
        if missing:
            raise SourceError(
                f"find column {', '.join(missing)} in {self.file.path}",
                f"its columns are {', '.join(names) or 'none'}",
                "Correct the fields that `task` names, or leave the file out with `source.exclude`",
            )

    def oversized(self, where: str) -> SourceError:
        return SourceError(
            f"read the record at {where}",
            f"it is longer than max_record_bytes ({self.source.max_record_bytes})",
            "Raise `source.max_record_bytes` or split the file",
        )


def _undecodable(error: UnicodeDecodeError, offset: int, encoding: str) -> str:
    byte, place = error.object[error.start], offset + error.start
    return f"byte {byte:#04x} at offset {place} is not valid {encoding}: check `source.encoding`"


def _split(data: bytes, newline: bytes) -> list[bytes]:
    """Split at line feeds, which UTF-16 and UTF-32 have only on a character's boundary."""
    if newline == b"\n":
        return data.split(newline)
    width, parts, start, at = len(newline), [], 0, data.find(newline)
    while at >= 0:
        if at % width:
            at = data.find(newline, at + 1)
            continue
        parts.append(data[start:at])
        start = at + width
        at = data.find(newline, start)
    return [*parts, data[start:]]


def _read_text(opened: _Opened) -> Found:
    if opened.source.records == "file":
        yield from _read_whole_text(opened)
        return
    for found in opened.texts():
        if isinstance(found, Rejection):
            yield found
        elif found[1]:
            yield Located(opened.at(found[0]), {"text": found[1]})


def _read_whole_text(opened: _Opened) -> Found:
    data, path = opened.whole(), opened.file.path
    encoding, mark = opened.encoding(data)
    try:
        text = data[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        yield Rejection(path, _undecodable(error, mark, encoding))
        return
    if text:
        yield Located(path, {"text": text, "path": path})


def _read_jsonl(opened: _Opened) -> Found:
    for found in opened.texts():
        if isinstance(found, Rejection):
            yield found
            continue
        number, line = found
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Rejection(opened.at(number), f"not JSON: {error}")
            continue
        if isinstance(record, dict):
            yield Located(opened.at(number), record)
        else:
            kind = type(record).__name__
            yield Rejection(opened.at(number), f"a JSON object is expected, not {kind}")


def _read_csv(opened: _Opened) -> Found:
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


def _column_names(opened: _Opened, row: list[str]) -> list[str]:
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

    def __init__(self, opened: _Opened) -> None:
        self._lines = self._decode(opened)
        self.number = 0
        """Of the line handed out last."""
        self.undecodable = ""
        """What was wrong with a line since this was last cleared."""

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def _decode(self, opened: _Opened) -> Iterator[str]:
        for number, offset, line, encoding in opened.lines():
            self.number = number
            try:
                text = line.decode(encoding) + "\n"
            except UnicodeDecodeError as error:
                self.undecodable = _undecodable(error, offset, encoding)
                text = line.decode(encoding, "replace") + "\n"
            # Old spreadsheets end their lines with a lone CR.
            yield from re.split(r"(?<=\r)(?!\n)", text) if "\r" in text[:-2] else (text,)


def _read_parquet(opened: _Opened) -> Found:
    parquet, limit = pq.ParquetFile(opened.raw), opened.source.max_record_bytes
    opened.refuse_missing(parquet.schema_arrow.names)
    number = 0
    for batch in parquet.iter_batches(batch_size=1024):
        for record in batch.to_pylist():
            number += 1
            # Only a batch that is larger than a record may be can hold one that is.
            if batch.nbytes > limit and _longest(record) > limit:
                raise opened.oversized(opened.record(number))
            yield Located(opened.record(number), record)


def _longest(record: Record) -> int:
    return max(
        (len(value) for value in record.values() if isinstance(value, str | bytes)), default=0
    )


def _read_image(opened: _Opened) -> Found:
    folder = opened.file.url.rsplit("/", 2)
    label = folder[-2] if len(folder) == 3 else ""
    path = opened.file.path
    yield Located(path, {"image": opened.whole(), "label": label, "path": path})


def _read_fasta(opened: _Opened) -> Found:
    sequence: _Sequence | None = None
    for found in opened.texts():
        if isinstance(found, Rejection):
            if sequence is None:
                yield found
            else:
                sequence.flaw = found.reason
            continue
        number, line = found[0], found[1].strip()
        if line.startswith(">"):
            if sequence:
                yield sequence.located()
            sequence = _Sequence(opened.at(number), line[1:].strip(), [])
        elif line and sequence is None:
            raise SourceError(
                f"read {opened.file.path} as FASTA", f"line {number} precedes any > title", _DAMAGED
            )
        elif line and sequence:
            sequence.parts.append(line)
            sequence.num_bytes += len(line)
            if sequence.num_bytes > opened.source.max_record_bytes:
                raise opened.oversized(sequence.where)
    if sequence:
        yield sequence.located()


@dataclass
class _Sequence:
    """A FASTA record while its lines are read."""

    where: str
    title: str
    parts: list[str]
    num_bytes: int = 0
    flaw: str = ""

    def located(self) -> Located | Rejection:
        if self.flaw or not self.parts:
            return Rejection(self.where, self.flaw or "a title without a sequence")
        name, _, description = self.title.partition(" ")
        record = {"id": name, "description": description, "sequence": "".join(self.parts)}
        return Located(self.where, record)


_READERS: dict[str, Callable[[_Opened], Found]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "image": _read_image,
    "fasta": _read_fasta,
}
