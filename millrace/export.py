"""Export a split's samples to another format: `python -m millrace export PIPELINE`."""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from millrace import manifest as manifests
from millrace.data.columns import Columns, Field, num_rows, size
from millrace.data.parquet_file import ParquetFile
from millrace.data.samples import Samples
from millrace.data.tar_shard import TarShard
from millrace.errors import ExistsError, SpecError
from millrace.frozen import unknown_key
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, Storage, StoredFile, default_store

FILE_BYTES = 64 * 2**20
BATCH_BYTES = 2**20
"""Raw, and so of a row group: what is read and encoded at once."""


class FileWriter(Protocol):
    """A file of one format while it is filled."""

    overhead_bytes: int
    """Of a sample, beside its columns."""

    @property
    def num_bytes(self) -> int:
        """Bytes so far."""

    def add(self, columns: Columns, first: int) -> None:
        """Append samples, the first of which is number `first` of its split."""

    def finish(self) -> bytes:
        """The whole file."""


_FORMATS: dict[str, tuple[type[TarShard] | type[ParquetFile], str]] = {
    "webdataset": (TarShard, "tar"),
    "parquet": (ParquetFile, "parquet"),
}


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how many samples it holds."""

    file: StoredFile
    num_samples: int


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit status. The last line is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m millrace export",
        description="Write the samples of a split as files that other libraries read. "
        "The target must hold no file of that split.",
    )
    parser.add_argument("pipeline")
    parser.add_argument("--split", required=True, help="train, validation or test")
    parser.add_argument("--format", required=True, choices=tuple(_FORMATS))
    parser.add_argument("--to", required=True, metavar="URL", help="the folder to write to")
    parser.add_argument("--store", default=default_store(), help="default: %(default)s")
    asked = parser.parse_args(arguments)
    storage = FsspecStorage(asked.store)
    shards = manifests.current(storage, asked.pipeline, "shards")
    num_files = num_samples = num_bytes = 0
    for made in export(storage, shards, asked.split, asked.format, FsspecStorage(asked.to)):
        sys.stdout.write(
            f"{asked.to.rstrip('/')}/{made.file.path}  {made.num_samples:,} samples, "
            f"{made.file.num_bytes / 1e6:.1f} MB\n"
        )
        sys.stdout.flush()
        num_files += 1
        num_samples += made.num_samples
        num_bytes += made.file.num_bytes
    told = {
        "to": asked.to, "split": asked.split, "format": asked.format, "num_files": num_files,
        "num_samples": num_samples, "num_bytes": num_bytes,
    }  # fmt: skip
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


def export(
    storage: Storage,
    shards: Manifest,
    split: str,
    format_name: str,
    target: Storage,
    *,
    file_bytes: int = FILE_BYTES,
) -> Iterator[Exported]:
    """Write a split's samples, in stored order, as files `SPLIT-000000.EXTENSION` and so on.

    Each file appears whole. When all are there, `.SPLIT.json` says so and names them: hidden, so
    that no reader of the folder takes it for samples.

    Args:
        storage: The pipeline's store.
        shards: The manifest of its shards.
        split: Which of its splits.
        format_name: `webdataset` or `parquet`.
        target: Where to write.
        file_bytes: About the largest size of a file, which is also what is held in memory.

    Yields:
        Each file once it is written.

    Raises:
        SpecError: There is no such split.
        ExistsError: The target holds files of the split already; nothing is replaced.
        CorruptError: A sample read is not what was packed.
    """
    facts, about = shards.facts, _about(shards, split, format_name)
    _refuse_existing(target, split)
    writer_type, extension = _FORMATS[format_name]
    fields = {name: Field(dtype, tuple(shape)) for name, (dtype, shape) in facts["fields"].items()}
    summed = facts["splits"][split]
    sample_bytes = summed["raw_bytes"] // max(1, summed["num_samples"]) + writer_type.overhead_bytes
    batches = Samples(storage, shards, split).batches(max(1, BATCH_BYTES // max(1, sample_bytes)))
    files = fill_files(batches, lambda: writer_type(fields, facts["classes"], about), file_bytes)
    written: list[Exported] = []
    for number, (data, num_samples) in enumerate(files):
        file = _create(target, f"{split}-{number:06}.{extension}", data)
        written.append(Exported(file, num_samples))
        yield written[-1]
    index = about | {"files": [asdict(made) for made in written]}
    _create(target, _index(split), json.dumps(index, indent=1, ensure_ascii=False).encode())


def _about(shards: Manifest, split: str, format_name: str) -> dict[str, Any]:
    """Where the samples come from and what their columns are."""
    splits = shards.facts["splits"]
    if split not in splits:
        asked = f"export the split {split} of {shards.pipeline}"
        raise SpecError(asked, unknown_key(split, splits, "split"), "Correct --split")
    return {
        "pipeline": shards.pipeline,
        "shards": shards.digest,
        "split": split,
        "format": format_name,
        "classes": shards.facts["classes"],
        "fields": shards.facts["fields"],
    }


def fill_files(
    batches: Iterator[Columns], build: Callable[[], FileWriter], file_bytes: int
) -> Iterator[tuple[bytes, int]]:
    """The bytes of each file, about `file_bytes` at most, and the number of samples in it."""
    writer, start, stop = build(), 0, 0
    for columns in batches:
        num_bytes = size(columns) + num_rows(columns) * writer.overhead_bytes
        if stop > start and writer.num_bytes + num_bytes > file_bytes:
            yield writer.finish(), stop - start
            writer, start = build(), stop
        writer.add(columns, stop)
        stop += num_rows(columns)
    if stop > start:
        yield writer.finish(), stop - start


def _index(split: str) -> str:
    return f".{split}.json"


def _refuse_existing(target: Storage, split: str) -> None:
    found = [path for path in target.list("") if path.startswith((f"{split}-", _index(split)))]
    if found:
        raise ExistsError(
            f"export to {target.url}",
            f"it holds {len(found)} files of the split {split} already, {min(found)} among them",
            "Name another folder, or delete those files",
        )


def _create(target: Storage, path: str, data: bytes) -> StoredFile:
    target.write(path, data, if_absent=True)
    return StoredFile(path, len(data), hashlib.sha256(data).hexdigest())
