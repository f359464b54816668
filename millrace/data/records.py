"""Read one source file as records: text, JSONL, CSV, Parquet, images, FASTA, IDX or tar.

    bytes -> told by their first bytes whether compressed -> decoded text -> records
                                                                          -> rejections, by line

A file that is damaged as a whole (torn compression, no such column) is an error naming it; a single
bad record is rejected and counted, never silently dropped. Lines end at LF alone.
"""

import io
from collections.abc import Callable, Sequence
from typing import IO

import pyarrow as pa
from fsspec.asyn import AsyncFileSystem

from millrace.data import synthetic
from millrace.data.formats.idx import read_idx
from millrace.data.formats.images import read_image
from millrace.data.formats.lines import read_fasta, read_jsonl, read_text
from millrace.data.formats.opened import (
    DAMAGED,
    READ_BYTES,
    Found,
    Located,
    Opened,
    Record,
    Rejection,
)
from millrace.data.formats.tables import read_csv, read_parquet
from millrace.data.formats.tars import read_webdataset
from millrace.data.listing import SourceFile
from millrace.data.source_reader import SourceReader
from millrace.errors import NotFoundError, SourceError, StorageError
from millrace.filesystem import open_filesystem
from millrace.spec import SourceSpec

# Of what is imported: all who read records take these from here.
__all__ = ["Found", "Located", "Record", "Rejection", "format_of", "read_records"]

_FORMATS = {
    "txt": "text", "text": "text", "md": "text", "py": "text", "log": "text",
    "jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "parquet": "parquet",
    "png": "image", "jpg": "image", "jpeg": "image", "bmp": "image", "gif": "image",
    "fa": "fasta", "fna": "fasta", "fasta": "fasta", "faa": "fasta",
    "tar": "webdataset", "idx3-ubyte": "idx",
}  # fmt: skip


def read_records(file: SourceFile, source: SourceSpec, needs: Sequence[str] = ()) -> Found:
    """The file's records in order, with a Rejection in place of each bad one.

    `needs` names columns that a file with a header or schema must have.

    Raises:
        SourceError: The file is missing, damaged, of unknown format, lacks a column, or holds an
            oversized record.
    """
    if file.url.startswith(synthetic.SCHEME):
        made = enumerate(synthetic.make(file.url), 1)
        yield from (Located(f"{file.path}, record {number}", record) for number, record in made)
        return
    read = _READERS[format_of(file, source)]
    asked = f"read the source file {file.path} ({file.num_bytes} bytes)"
    try:
        with _open(file) as raw:
            yield from read(Opened(file, source, raw, tuple(needs)))
    except (FileNotFoundError, NotFoundError) as error:
        raise SourceError(asked, "it is gone", "It was removed since it was listed") from error
    except StorageError as error:
        raise SourceError(asked, error.found, "Check that the place answers; then again") from error
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(asked, reason, DAMAGED) from error


def _open(file: SourceFile) -> IO[bytes]:
    filesystem, path = open_filesystem(file.url)
    if isinstance(filesystem, AsyncFileSystem):
        # fsspec's own buffered readers fetch 50 MiB for 1 KiB, and take a truncated body for data.
        return io.BufferedReader(SourceReader(file), READ_BYTES)
    opened: IO[bytes] = filesystem.open(path, "rb")
    return opened


def format_of(file: SourceFile, source: SourceSpec) -> str:
    """The format the file is read in: as the spec says, else by its extension; or `made`."""
    if file.url.startswith(synthetic.SCHEME):
        return "made"
    if source.format != "auto":
        return source.format
    # MNIST's files have their extension after a hyphen as often as after a dot.
    parts = file.path.rsplit("/", 1)[-1].lower().replace("-idx", ".idx").split(".")
    extension = parts[-2] if parts[-1] in ("gz", "zst") and len(parts) > 2 else parts[-1]
    if extension not in _FORMATS:
        raise SourceError(
            f"tell the format of {file.path} by its extension",
            f"`{extension}` is none of {', '.join(sorted(_FORMATS))}",
            "Set `source.format`, or narrow `source.url` to the files you mean",
        )
    return _FORMATS[extension]


_READERS: dict[str, Callable[[Opened], Found]] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
    "image": read_image,
    "fasta": read_fasta,
    "webdataset": read_webdataset,
    "idx": read_idx,
}
