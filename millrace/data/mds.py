"""Read MDS data sets (mosaicml-streaming) as they are: shards on the store become columns.

    index.json -> shards -> frames -> bytes, proven -> columns, all samples of a frame at once

A shard is: uint32 n, uint32 (n + 1) offsets, the writer's configuration, the samples. A sample is:
a uint32 for the size of each of its columns of varying size, then the columns, in order of name.
"""

import hashlib
import json
import re
import zlib
from bz2 import BZ2Decompressor
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from millrace.data.columns import Array, Columns, Field, Ragged
from millrace.errors import CorruptError, SourceError
from millrace.storage import Storage

FRAME_BYTES = 2**20
LARGEST_SHARD_BYTES = 2**32
"""Since offsets have 32 bits; a shard that is said to be larger is not decompressed."""
INDEX = "index.json"
VERSION = 2
_SCALARS = frozenset(
    f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
) | {"float16", "float32", "float64"}  # fmt: skip
_RAGGED = {
    "str": "text", "json": "text", "str_int": "text", "str_float": "text", "str_decimal": "text",
    "jpeg": "image", "png": "image",
    # Kept in MDS's own layout: raw pixels behind a header, lists of images.
    "bytes": "bytes", "pil": "bytes", "jpeg_array": "bytes", "jpegarray": "bytes",
    "list[pil]": "bytes", "list[jpeg]": "bytes", "list[png]": "bytes",
}  # fmt: skip
_HASHES = frozenset(
    name for name in hashlib.algorithms_guaranteed if not name.startswith("shake")
)  # fmt: skip
_MEND = "Copy the data set again, or write it anew"
_COUNT_BYTES = 4
"""Of n, of an offset and of a size."""


@dataclass(frozen=True)
class _File:
    """A file as the index describes it."""

    path: str
    num_bytes: int
    hashes: Mapping[str, str]

    @property
    def is_hashed(self) -> bool:
        """Whether the index has a digest that can be verified."""
        return not _HASHES.isdisjoint(self.hashes)

    def prove(self, data: bytes, where: str) -> bytes:
        """`data`, if its size and digests are those of the index; xxHash is passed over."""
        asked = f"read {where}/{self.path} ({self.num_bytes} bytes)"
        if len(data) != self.num_bytes:
            raise CorruptError(asked, f"it has {len(data)} bytes", _MEND)
        for name, told in self.hashes.items():
            if name in _HASHES:
                found = hashlib.new(name, data, usedforsecurity=False).hexdigest()
                if found != told:
                    raise CorruptError(f"{asked}, {name} {told}", f"{name} {found}", _MEND)
        return data


@dataclass(frozen=True)
class _Shard:
    """A shard as the index describes it; `zipped` is the file that lies there if compressed."""

    num_samples: int
    raw: _File
    zipped: _File | None
    compression: str

    @property
    def num_frames(self) -> int:
        """Only plain files can be cut, since a digest proves nothing but the whole."""
        if self.zipped or self.raw.is_hashed:
            return 1
        return min(self.num_samples, max(1, round(self.raw.num_bytes / FRAME_BYTES)))


class MdsSamples:
    """The samples of an MDS data set, to be streamed as those of a split are.

    Scalars and arrays of a fixed shape become arrays; `str`, `json` and numbers written as text
    become text; `jpeg` and `png` images stay as they are. All else becomes bytes in MDS's own
    layout: arrays of varying shape (a byte `4 ndim + log2 of the size's width`, the sizes, the
    values), `pil` and lists of images.

    A plain shard is cut into frames of about 1 MiB, each fetched by range. A shard that is
    compressed or has digests in the index is one frame: fetched and proven whole.

    Args:
        storage: Where it lies.
        folder: Path below the storage of the folder that holds index.json.

    Raises:
        NotFoundError: There is no index.json.
        SourceError: A column or compression that is not read (pickle never is), a shard outside
            the folder, or an index that contradicts itself.
    """

    def __init__(self, storage: Storage, folder: str = "") -> None:
        self._storage = storage
        self._prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        self._where = f"{storage.url}/{self._prefix}".rstrip("/")
        self._columns, self._shards = self._read_index()
        self.fields: Mapping[str, Field] = {column.name: column.field for column in self._columns}
        self._frames = [
            (shard, start, stop) for shard in self._shards for start, stop in _cut(shard)
        ]
        counts = [stop - start for _, start, stop in self._frames]
        self.samples_per_frame = np.array(counts, np.int64)
        # Of frames cut out of a shard the mean: their true sizes would take all offsets to tell.
        self.frame_bytes = np.array(
            [
                -(-shard.raw.num_bytes * (stop - start) // shard.num_samples)
                for shard, start, stop in self._frames
            ],
            np.int64,
        )

        self.chunk_starts = np.arange(len(counts))
        self.classes: Sequence[str] = ()

    def __len__(self) -> int:
        return int(self.samples_per_frame.sum())

    def prefetch(self, frames: Sequence[int]) -> None:
        """Nothing is fetched ahead: a frame is when a thread asks for it."""

    def frame(self, number: int) -> Columns:
        """The columns of a frame.

        Raises:
            NotFoundError: The shard is gone.
            CorruptError: The shard is not what the index says, or not a shard.
        """
        shard, start, stop = self._frames[number]
        path = shard.raw.path if shard.zipped is None else shard.zipped.path
        asked = f"read samples {start} to {stop} of {self._where}/{path}"
        if shard.num_frames == 1:
            whole = self._whole(shard)
            offsets = _offsets(whole[: _table_bytes(shard.num_samples)], shard, 0, asked)
            data = whole[offsets[0] : offsets[-1]]
        else:
            # A run of the offsets, from the number of samples on if it is the first.
            first = start + 1 if start else 0
            table = self._fetch(path, _COUNT_BYTES * first, _table_bytes(stop))
            offsets = _offsets(table, shard, start, asked)
            data = self._fetch(path, int(offsets[0]), int(offsets[-1]))
        return _parse(data, offsets - offsets[0], self._columns, asked)

    def _fetch(self, path: str, start: int, end: int) -> bytes:
        return self._storage.read(self._prefix + path, start, end)

    def _whole(self, shard: _Shard) -> bytes:
        file = shard.zipped or shard.raw
        data = file.prove(self._storage.read(self._prefix + file.path), self._where)
        if shard.zipped is None:
            return data
        return shard.raw.prove(_decompress(data, shard, self._where), self._where)

    def _read_index(self) -> tuple[list["_Column"], list[_Shard]]:
        asked = f"read the MDS data set {self._where}"
        try:
            index = json.loads(self._storage.read(self._prefix + INDEX))
            version, listed = index["version"], list(index["shards"])
            told = {(shard["version"], shard["format"]) for shard in listed}
            described = {
                tuple(zip(shard["column_names"], shard["column_encodings"], strict=True))
                for shard in listed
            }
            shards = [_build_shard(shard, asked) for shard in listed]
            sizes = [list(shard["column_sizes"]) for shard in listed]
            columns = [_build_column(*pair, asked) for pair in min(described, default=())]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{INDEX} is no index of MDS ({type(error).__name__}: {error})"
            raise SourceError(asked, reason, _MEND) from error
        if version != VERSION or told - {(VERSION, "mds")}:
            found = f"version {version}, shards of {sorted(told, key=str)}"
            raise SourceError(asked, found, "Only version 2 of format mds is read")
        if len(described) != 1:
            raise SourceError(asked, f"{len(described)} sets of columns in its shards", _MEND)
        expected = [column.num_bytes for column in columns]
        if any(found != expected for found in sizes):
            raise SourceError(
                asked, f"column_sizes are not those of the encodings, {expected}", _MEND
            )
        return columns, [shard for shard in shards if shard.num_samples]


def _cut(shard: _Shard) -> list[tuple[int, int]]:
    """[start, stop) of the samples of each frame, as even as can be."""
    edges = np.linspace(0, shard.num_samples, shard.num_frames + 1).astype(int).tolist()
    return list(pairwise(edges))


def _build_shard(told: Mapping[str, Any], asked: str) -> _Shard:
    compression = (told["compression"] or "").partition(":")[0] if told["zip_data"] else ""
    if told["zip_data"] and compression not in _DECOMPRESSORS:
        raise SourceError(
            asked,
            f"it is compressed with `{compression}`",
            f"Write it with one of {', '.join(_DECOMPRESSORS)}, or without compression",
        )
    raw = _build_file(told["raw_data"], asked)
    zipped = _build_file(told["zip_data"], asked) if told["zip_data"] else None
    num_samples = told["samples"]
    fits = isinstance(num_samples, int) and _table_bytes(num_samples) <= max(raw.num_bytes, 8)
    if not fits or raw.num_bytes >= LARGEST_SHARD_BYTES:
        raise SourceError(
            asked, f"{raw.path}: {num_samples} samples in {raw.num_bytes} bytes", _MEND
        )
    return _Shard(num_samples, raw, zipped, compression)


def _build_file(told: Mapping[str, Any], asked: str) -> _File:
    path, num_bytes = told["basename"], told["bytes"]
    parts = path.replace("\\", "/").split("/")
    if {"", ".", ".."} & set(parts) or re.search(r"[\0:]", path):
        raise SourceError(
            asked,
            f"its index names {path!r}, which may lie outside the folder",
            "Read it only if you trust its origin, and correct the index first",
        )
    if not isinstance(num_bytes, int) or num_bytes < 0:
        raise SourceError(asked, f"{path} has {num_bytes!r} bytes", _MEND)
    return _File(path, num_bytes, dict(told["hashes"]))


@dataclass(frozen=True)
class _Column:
    """A column: its bytes in each sample, None where they vary, and what it becomes."""

    name: str
    field: Field

    @property
    def num_bytes(self) -> int | None:
        """As `column_sizes` in the index."""
        return None if self.field.is_ragged else self.field.entry_bytes


def _build_column(name: str, encoding: str, asked: str) -> _Column:
    kind, _, rest = encoding.partition(":")
    if encoding == "int":
        return _Column(name, Field("int64"))
    if encoding in _SCALARS:
        return _Column(name, Field(encoding))
    if encoding in _RAGGED:
        return _Column(name, Field(_RAGGED[encoding]))
    if kind == "ndarray":
        dtype, _, sizes = rest.partition(":")
        if dtype in _SCALARS and re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", sizes, re.ASCII):
            return _Column(name, Field(dtype, tuple(map(int, sizes.split(",")))))
        if dtype in {"", *_SCALARS} and not sizes:
            return _Column(name, Field("bytes"))
    is_pickle = encoding == "pkl"
    raise SourceError(
        asked,
        f"column `{name}` is {'a pickle, which can run any code' if is_pickle else encoding!r}",
        "Write it again without that column, or with another encoding",
    )


def _table_bytes(num_samples: int) -> int:
    """Bytes of the number of samples and of the offsets up to the end of the last."""
    return _COUNT_BYTES * (num_samples + 2)


def _offsets(table: bytes, shard: _Shard, start: int, asked: str) -> npt.NDArray[np.int64]:
    """Where the samples from `start` on begin and the last ends, in bytes of the shard."""
    found = np.frombuffer(table, "<u4").astype(np.int64)
    if not start:
        if found[0] != shard.num_samples:
            raise CorruptError(asked, f"the shard has {found[0]} samples", _MEND)
        found = found[1:]
    is_last = start + len(found) - 1 == shard.num_samples
    if (
        (np.diff(found) < 0).any()
        or found[0] < _table_bytes(shard.num_samples)
        or found[-1] > shard.raw.num_bytes
        or (is_last and found[-1] != shard.raw.num_bytes)
    ):
        raise CorruptError(
            asked, f"its offsets are not in order within {shard.raw.num_bytes} bytes", _MEND
        )
    return found


def _parse(
    data: bytes, offsets: npt.NDArray[np.int64], columns: Sequence[_Column], asked: str
) -> Columns:
    """Samples [offsets[i], offsets[i + 1]) of `data` as columns, all samples at once."""
    varying = [column for column in columns if column.num_bytes is None]
    head = _COUNT_BYTES * len(varying)
    fixed = head + sum(column.num_bytes or 0 for column in columns)
    lengths = np.diff(offsets)
    _refuse_sizes(lengths < fixed, asked)  # before sizes are read from what may lie outside
    starts = offsets[:-1]
    sizes = _gather(data, starts, Field("uint32", (len(varying),))).astype(np.int64)
    _refuse_sizes(fixed + sizes.sum(axis=1) != lengths, asked)
    found: Columns = {}
    at, number = starts + head, 0
    for column in columns:
        if column.num_bytes is None:
            found[column.name] = _gather_ragged(data, at, sizes[:, number])
            at, number = at + sizes[:, number], number + 1
        else:
            found[column.name] = _gather(data, at, column.field)
            at = at + column.num_bytes
    return found


def _refuse_sizes(is_wrong: npt.NDArray[np.bool_], asked: str) -> None:
    if is_wrong.any():
        number = int(np.argmax(is_wrong))
        raise CorruptError(asked, f"the sizes of sample {number} of them do not add up", _MEND)


def _gather(data: bytes, at: npt.NDArray[np.int64], field: Field) -> Array:
    """An entry of a fixed size from each place, copied into one aligned array."""
    width = field.entry_bytes
    shape = (len(at), *field.shape)
    if not width or not len(at):
        return np.empty(shape, field.dtype)
    # One void item per byte of the shard, overlapping: picking items is then one copy each.
    items: Array = np.ndarray((len(data) - width + 1,), f"V{width}", data, strides=(1,))
    return items[at].view(np.dtype(field.dtype).newbyteorder("<")).reshape(shape)


def _gather_ragged(data: bytes, at: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Ragged:
    """An entry of its own size from each place, copied together."""
    # Entries and the gaps between them alternate; every second one is wanted.
    edges = np.stack([at, at + sizes], axis=1).reshape(-1)
    return Ragged(edges, np.frombuffer(data, np.uint8)).take(np.arange(0, len(edges), 2))


def _decompress(data: bytes, shard: _Shard, where: str) -> bytes:
    """The plain bytes of a compressed shard, at most as many as the index says."""
    assert shard.zipped is not None, "there is something to decompress"
    asked = f"decompress {where}/{shard.zipped.path}"
    try:
        return _DECOMPRESSORS[shard.compression](data, shard.raw.num_bytes)
    except (zstandard.ZstdError, zlib.error, OSError, EOFError, ValueError) as error:
        raise CorruptError(asked, str(error), _MEND) from error


def _unzstd(data: bytes, num_bytes: int) -> bytes:
    told = zstandard.frame_content_size(data)
    if told not in (-1, num_bytes):  # before decoding: a lying frame must not exhaust the memory
        raise ValueError(f"the frame declares {told} bytes, the index {num_bytes}")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=num_bytes)


def _ungzip(data: bytes, num_bytes: int) -> bytes:
    return _whole_stream(zlib.decompressobj(wbits=31), data, num_bytes)


def _unbzip2(data: bytes, num_bytes: int) -> bytes:
    return _whole_stream(BZ2Decompressor(), data, num_bytes)


def _whole_stream(decompressor: Any, data: bytes, num_bytes: int) -> bytes:
    plain: bytes = decompressor.decompress(data, num_bytes + 1)
    if not decompressor.eof:
        raise ValueError(f"it is torn, or longer than {num_bytes} bytes")
    return plain


_DECOMPRESSORS: dict[str, Callable[[bytes, int], bytes]] = {
    "zstd": _unzstd,
    "gz": _ungzip,
    "bz2": _unbzip2,
}
