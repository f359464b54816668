"""An open source file: its bytes decompressed as they are read, as a whole or by line."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import pyarrow as pa

from millrace.data.listing import SourceFile
from millrace.errors import SourceError
from millrace.spec import SourceSpec

Record = dict[str, Any]
READ_BYTES = 2**20
DAMAGED = "Replace it with a whole copy or leave it out with `source.exclude`"
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


@dataclass
class Opened:
    """An open source file, its bytes decompressed as they are read."""

    file: SourceFile
    source: SourceSpec
    raw: IO[bytes]
    needs: tuple[str, ...]

    def stream(self) -> IO[bytes]:
        """The file's bytes, decompressed."""
        head = self.raw.read(4)
        self.raw.seek(0)
        for magic, codec in _COMPRESSIONS.items():
            if head.startswith(magic):
                # Arrow's reader is the one that reports a torn gz or zstd stream as an error.
                file = pa.PythonFile(self.raw, mode="r")
                plain: IO[bytes] = pa.CompressedInputStream(file, codec)
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
            *lines, rest = split_lines(rest + part, newline)
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
                yield Rejection(self.at(number), undecodable(error, offset, encoding))

    def folders(self) -> dict[str, str]:
        """The record's fields that say where the file lies.

        `label` is the name of its folder, `top_folder` the first one of the listed path; empty
        where the file lies in none.
        """
        above = self.file.url.rsplit("/", 2)
        top, slash, _ = self.file.path.partition("/")
        return {
            "path": self.file.path,
            "label": above[-2] if len(above) == 3 else "",
            "top_folder": top if slash else "",
        }

    def at(self, line: int) -> str:
        """Where a line stands."""
        return f"{self.file.path}:{line}"

    def record(self, number: int) -> str:
        """Where a record stands that has no line."""
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
        """The error of a record beyond the limit."""
        return SourceError(
            f"read the record at {where}",
            f"it is longer than max_record_bytes ({self.source.max_record_bytes})",
            "Raise `source.max_record_bytes` or split the file",
        )


def undecodable(error: UnicodeDecodeError, offset: int, encoding: str) -> str:
    """What is wrong with text at this offset of its file."""
    byte, place = error.object[error.start], offset + error.start
    return f"byte {byte:#04x} at offset {place} is not valid {encoding}: check `source.encoding`"


def split_lines(data: bytes, newline: bytes) -> list[bytes]:
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
