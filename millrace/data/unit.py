"""Pack one unit of source files: records streamed through an encoder into shards, split by split.

    files --> heads read ahead --> records, proven to be those listed --> batches of a few MiB
    batch --> each split's samples --> its shards, written as they fill --> read back --> manifest

In memory are a few batches and, for each split, a shard: a unit may be one file of any size.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain

from millrace import manifest as manifests
from millrace.data.columns import Columns, cut, num_rows
from millrace.data.fields import build_encoder
from millrace.data.images import decoded, decoded_bytes
from millrace.data.ingest import READERS, Ids, read_values
from millrace.data.listing import SourceFile
from millrace.data.records import Rejection
from millrace.data.shard import Layout, Shard, ShardReader, ShardWriter
from millrace.data.splits import SPLITS, Kept, draw_splits
from millrace.data.statistics import InputSums
from millrace.data.tokenizer import tokenizer_of_job
from millrace.data.values import Encoder, LabelIndex, Value
from millrace.errors import SourceError
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage

NOUN = "shards/units"
BATCH_BYTES = 4 * 2**20
HEAD_BYTES = 2**20
"""Of a file's values, read ahead: small files whole, so that a store's latency is paid once."""


@dataclass(frozen=True)
class Unit:
    """Source files packed together, and which of their records to keep."""

    key: str
    files: tuple[SourceFile, ...]
    ids: Ids
    kept: Kept
    layout: Layout

    def __str__(self) -> str:
        others = f" and {len(self.files) - 1} more files" if len(self.files) > 1 else ""
        return f"pack {self.files[0].path}{others}"


def pack_unit(job: Job, threads: int, unit: Unit) -> Manifest:
    """Write the unit's shards, read them back, publish what they are.

    Args:
        job: The job of packing.
        threads: That compress.
        unit: What to pack.

    Raises:
        SourceError: A file changed since it was listed. Nothing is published then.
    """
    storage, encoder = FsspecStorage(job.store), build_encoder(job.spec.task, tokenizer_of_job(job))
    folder = manifests.folder(job.pipeline, NOUN, unit.key)
    parts = [
        _Part(
            encoder,
            ShardWriter(
                storage, folder, encoder.fields, split=split, layout=unit.layout, threads=threads
            ),
        )
        for split in SPLITS
    ]
    sums = InputSums()
    try:
        with closing(kept_values(job, unit, encoder)) as values:
            for part, columns in _encoded(values, parts, encoder):
                part.writer.write(columns)
                if part is parts[0] and "inputs" in columns:
                    _add_inputs(sums, columns, encoder)
        shards = [shard for part in parts for shard in part.close()]
    finally:
        for part in parts:
            part.writer.abandon()
    reader = ShardReader(storage, encoder.fields)
    facts = {
        "shards": [shard.to_dict() for shard in shards],
        "statistics": sums.to_list(),
        "frames_read_back": sum(reader.prove(shard) for shard in shards),
    }
    files = tuple(shard.file for shard in shards)
    return manifests.publish(
        storage, Manifest(job.pipeline, NOUN, unit.key, files=files, facts=facts)
    )


@dataclass
class _Part:
    """What of a unit falls into one split.

    Labels are numbered split by split: numbered over all three, they would depend on batches.
    """

    encoder: Encoder
    writer: ShardWriter
    labels: LabelIndex = field(default_factory=LabelIndex)
    waiting: list[Value] = field(default_factory=list)

    def take_waiting(self) -> Columns:
        values, self.waiting = self.waiting, []
        return self.encoder.samples(values, self.labels)

    def close(self) -> list[Shard]:
        return self.writer.close(tuple(self.labels.classes))


def _encoded(
    values: Iterable[tuple[int, Value]], parts: Sequence[_Part], encoder: Encoder
) -> Iterator[tuple[_Part, Columns]]:
    """The samples of numbered splits' values, in batches of about BATCH_BYTES."""
    entry_bytes = sum(told.entry_bytes for told in encoder.fields.values())
    num_bytes = 0
    for split, value in values:
        parts[split].waiting.append(value)
        num_bytes += len(value.inputs) + entry_bytes  # a short text fills a block all the same
        if num_bytes >= BATCH_BYTES:
            yield from ((part, part.take_waiting()) for part in parts if part.waiting)
            num_bytes = 0
    yield from ((part, part.take_waiting()) for part in parts if part.waiting)


def _add_inputs(sums: InputSums, columns: Columns, encoder: Encoder) -> None:
    """Add inputs to the sums, a few MiB of pixels at a time where images are coded."""
    step = max(1, BATCH_BYTES // max(1, decoded_bytes(encoder.fields)))
    parts = (cut(columns, start, start + step) for start in range(0, num_rows(columns), step))
    for part in decoded(parts, encoder.fields):
        sums.add(part["inputs"])


Values = Generator[Value, None, None]


def kept_values(job: Job, unit: Unit, encoder: Encoder) -> Generator[tuple[int, Value], None, None]:
    """Split and value of each record to keep, in order, proven to be those that were listed."""
    listed = unit.ids[:, 1]
    splits = draw_splits(unit.ids[:, 0], job.spec.split)
    number = 0
    with closing(_values_by_file(job, unit.files, encoder)) as by_file:
        for file, values in by_file:
            for value in values:
                if number >= len(listed) or value.content_id != listed[number]:
                    raise _changed(file)
                if unit.kept[number]:
                    yield int(splits[number]), value
                number += 1
    if number != len(listed):
        raise _changed(unit.files[-1])


def _values_by_file(
    job: Job, files: Sequence[SourceFile], encoder: Encoder
) -> Generator[tuple[SourceFile, Iterable[Value]], None, None]:
    """Each file with its values, of which the first HEAD_BYTES are read ahead in threads."""
    ahead: deque[tuple[SourceFile, Future[tuple[list[Value], Values]]]] = deque()
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        try:
            for file in files:
                ahead.append((file, pool.submit(_begin, file, job, encoder)))
                if len(ahead) >= READERS:
                    yield from _next_file(ahead)
            while ahead:
                yield from _next_file(ahead)
        finally:
            for _, begun in ahead:
                if not begun.cancel() and begun.exception() is None:
                    begun.result()[1].close()


def _next_file(
    ahead: deque[tuple[SourceFile, Future[tuple[list[Value], Values]]]],
) -> Iterator[tuple[SourceFile, Iterable[Value]]]:
    file, begun = ahead.popleft()
    head, rest = begun.result()
    with closing(rest):
        yield file, chain(head, rest)


def _begin(file: SourceFile, job: Job, encoder: Encoder) -> tuple[list[Value], Values]:
    """The first values of a file, and the others yet to be read."""
    rest = _usable(file, job, encoder)
    head: list[Value] = []
    num_bytes = 0
    for value in rest:
        head.append(value)
        num_bytes += len(value.inputs)
        if num_bytes >= HEAD_BYTES:
            break
    return head, rest


def _usable(file: SourceFile, job: Job, encoder: Encoder) -> Values:
    for value in read_values(file, job, encoder):
        if not isinstance(value, Rejection):
            yield value


def _changed(file: SourceFile) -> SourceError:
    return SourceError(
        f"pack {file.path}",
        "its records differ from those that source_files listed",
        "It was changed in between: materialize from source_files again",
    )
