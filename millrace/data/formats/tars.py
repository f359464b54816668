"""WebDataset: tar files in which the files of one name, its extensions apart, are one record.

    tar blocks -> members, in order -> consecutive ones of one key -> a record, a field for each

A member's name is a key and a field's name, never a path. Nothing is unpickled: a `.pkl` stays
bytes.
"""

import ast
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from millrace.data.formats.opened import (
    DAMAGED,
    READ_BYTES,
    Found,
    Located,
    Opened,
    Record,
    Rejection,
)
from millrace.errors import SourceError

BLOCK_BYTES = tarfile.BLOCKSIZE
MAX_NAME_BYTES = 2**16
"""Of the headers that give a member a longer name."""
_FILES = frozenset((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE))
# Their headers have no data after them, whatever size they tell.
_BARE = frozenset((
    tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
))  # fmt: skip


class _Member(NamedTuple):
    """A file in the tar; `key` and `extension` are its name, cut at the base name's first dot."""

    key: str
    extension: str
    data: bytes


def read_webdataset(opened: Opened) -> Found:
    """A record for each run of files with the same key, with `__key__` and a field for each file.

    `jpg`, `jpeg` and `png` become the field `image`; the fields of a JSON object become fields of
    the record; all others are called as their extension.
    """
    members: list[_Member] = []
    for member in _Tar(opened).members():
        if members and member.key != members[0].key:
            yield _located(opened, members)
            members = []
        members.append(member)
    if members:
        yield _located(opened, members)


def _located(opened: Opened, members: list[_Member]) -> Located | Rejection:
    where = _where(opened, members[0].key)
    record: Record = {"__key__": members[0].key}
    for member in members:
        kind = member.extension.rsplit(".", 1)[-1]
        try:
            value = _DECODERS.get(kind, bytes)(member.data)
        except (ValueError, RecursionError) as error:
            return Rejection(where, f"its .{member.extension} cannot be read: {error}")
        is_image = member.extension in ("jpg", "jpeg", "png")
        named = {"image" if is_image else member.extension: value}
        fields = value if isinstance(value, dict) else named
        if twice := record.keys() & fields.keys():
            return Rejection(where, f"it has the field `{min(twice)}` twice")
        record |= fields
    return Located(where, record)


def _where(opened: Opened, key: str) -> str:
    return f"{opened.file.path}, {key if key.isprintable() else ascii(key)}"


class _Tar:
    """The members of a tar file, read block by block; any flaw is an error with its offset.

    Python's tarfile parses the headers but does not read the archive: it takes one that is cut off
    behind a member, or inside a header, for whole, and remembers every member it has met.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened, self._stream = opened, opened.stream()
        self._offset = 0
        self._limit = opened.source.max_record_bytes

    def members(self) -> Iterator[_Member]:
        """All regular files with a key, each read whole; a record's files share the limit."""
        key, total = "", 0
        for info in self._files():
            found = re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]+)", info.name, re.DOTALL)
            if found is None or re.fullmatch("__.*__", found[1]):
                self._skip(info)
                continue
            total = info.size + (total if found[1] == key else 0)
            key = found[1]
            if total > self._limit:
                raise self._opened.oversized(_where(self._opened, key))
            data = self._read(_padded(info.size))[: info.size]
            yield _Member(key, found[2].lower(), data)

    def _files(self) -> Iterator[tarfile.TarInfo]:
        """The header of each regular file, with its long name, up to the archive's end."""
        name, size = "", -1  # as told by the headers before it
        while (info := self._header()) is not None:
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = _as_name(self._told(info).rstrip(b"\0"))
                continue
            if info.type == tarfile.XHDTYPE:
                told = _parse_pax(self._told(info))
                name = _as_name(told.get(b"path", b"")) or name
                size = int(told[b"size"]) if told.get(b"size", b"").isdigit() else size
                if any(key.startswith(b"GNU.sparse") for key in told):
                    raise self._damaged("a sparse file")
                continue
            if info.type in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
                self._skip(info)  # of the next link, or of no member
                continue
            if info.type in _FILES:
                info.name, info.size = name or info.name, info.size if size < 0 else size
                yield info
            elif info.type not in _BARE:
                raise self._damaged(f"a member of type {info.type!r}", BLOCK_BYTES)
            name, size = "", -1

    def _header(self) -> tarfile.TarInfo | None:
        block = self._read(BLOCK_BYTES)
        if not any(block):
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._damaged(f"no header of a member ({error})", BLOCK_BYTES) from error
        if info.size < 0:
            raise self._damaged(f"a member of {info.size} bytes", BLOCK_BYTES)
        return info

    def _told(self, info: tarfile.TarInfo) -> bytes:
        if info.size > MAX_NAME_BYTES:
            raise self._damaged(f"a name of {info.size} bytes")
        return self._read(_padded(info.size))[: info.size]

    def _read(self, num_bytes: int) -> bytes:
        data = _read_exactly(self._stream, num_bytes)
        self._offset += len(data)
        if len(data) < num_bytes:
            raise self._damaged("it ends before its archive does")
        return data

    def _skip(self, info: tarfile.TarInfo) -> None:
        left = _padded(info.size)
        while left:
            left -= len(self._read(min(left, READ_BYTES)))

    def _damaged(self, found: str, back: int = 0) -> SourceError:
        offset = self._offset - back
        return SourceError(
            f"read {self._opened.file.path} as tar", f"{found}, at byte {offset}", DAMAGED
        )


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _as_name(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _read_exactly(stream: IO[bytes], num_bytes: int) -> bytes:
    """As many bytes, or all that are left; a read may return fewer than it was asked for."""
    data = stream.read(num_bytes)
    while len(data) < num_bytes and (more := stream.read(num_bytes - len(data))):
        data += more
    return data


def _parse_pax(data: bytes) -> dict[bytes, bytes]:
    """The `LENGTH KEY=VALUE` lines of an extended header."""
    found, at = {}, 0
    while match := re.compile(rb"(\d{1,9}) ([^=]+)=").match(data, at):
        stop = at + int(match[1])
        if stop <= match.end():
            break
        found[match[2]] = data[match.end() : stop - 1]
        at = stop
    return found


def _decode_npy(data: bytes) -> Any:
    """An array as a view on its file; ValueError unless it is whole and of numbers or text.

    numpy's own reader of this header raises errors of many kinds, and warnings, on a damaged one.
    """
    if data[:6] != b"\x93NUMPY" or data[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it does not begin as one")
    start = 10 if data[6] == 1 else 12
    stop = start + int.from_bytes(data[8:start], "little")
    try:
        told = ast.literal_eval(data[start : min(stop, start + MAX_NAME_BYTES)].decode().strip())
        dtype, shape, is_fortran = (
            told["descr"],
            tuple(told["shape"]),
            told["fortran_order"] is True,
        )
    except (SyntaxError, TypeError, KeyError, MemoryError) as error:
        raise ValueError(f"its header is none ({error})") from error
    if not isinstance(dtype, str) or not re.fullmatch(r"[<>|]([biufc]\d{1,2}|[SU]\d{1,6})", dtype):
        raise ValueError(f"its numbers are of {dtype!r}")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    try:
        kind = np.dtype(dtype)
        if math.prod(shape) * kind.itemsize != len(data) - stop:
            raise ValueError(f"{len(data) - stop} bytes for {kind} of shape {shape}")
        return np.ndarray(shape, kind, data, stop, order="F" if is_fortran else "C")
    except (TypeError, OverflowError) as error:
        raise ValueError(f"no array of {dtype!r} has the shape {shape}") from error


def _decode_text(data: bytes) -> str:
    return data.decode()


def _decode_number(data: bytes) -> int:
    return int(data)


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "txt": _decode_text, "text": _decode_text,
    "cls": _decode_number, "int": _decode_number,
    "json": json.loads,
    "npy": _decode_npy,
}  # fmt: skip
