"""The level and frame size of a data set's shards: chosen once by cost, published, and kept.

spec says both --> these
chosen before for this data set, store and use --> the same again, nothing is measured
else --> sample, measure, decide, publish
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from millrace import manifest as manifests
from millrace.data import codec, frontier
from millrace.data.bill import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_LEVEL,
    Life,
    can_win,
    decide,
    expected_reads,
    make_bill,
    num_samples_taken,
    size_in_words,
)
from millrace.data.cache import ChunkCache, is_remote
from millrace.data.columns import Columns, cut, num_rows, size
from millrace.data.fields import build_encoder
from millrace.data.ingest import READERS, listed_file, read_values
from millrace.data.listing import SourceFile
from millrace.data.records import Rejection
from millrace.data.shard import Layout
from millrace.data.tokenizer import tokenizer_of_job
from millrace.data.values import LabelIndex, Value
from millrace.frozen import digest
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.spec import ShardsSpec
from millrace.storage import Storage
from millrace.telemetry import log

T = TypeVar("T")
NOUN = "shards/layout"
VERSION = 1
SAMPLE_BYTES = 8 * 2**20
RUNS, FILES_PER_RUN = 8, 32


@dataclass(frozen=True)
class ChosenLayout:
    """How samples are laid out in shards, and what led to it."""

    layout: Layout
    measured: Mapping[str, Any] = field(default_factory=dict)
    """The reason and, where it was measured, the numbers; differs from machine to machine."""

    @property
    def facts(self) -> dict[str, int]:
        """What was chosen, for a manifest."""
        return {"level": self.layout.level, "frame_bytes": self.layout.frame_bytes}


@dataclass(frozen=True)
class Sample:
    """Some of the data's samples, and how many a record has."""

    columns: Columns
    samples_per_record: float


def choose_layout(
    storage: Storage, job: Job, source: Manifest, *, num_records: int, num_train: int
) -> ChosenLayout:
    """What the spec says; what it leaves open, by cost.

    Args:
        storage: Where the shards will lie.
        job: The job of packing.
        source: The manifest of source_files.
        num_records: Records to pack.
        num_train: Those of them in the train split.
    """
    spec = job.spec.shards
    if not isinstance(spec.level, str) and not isinstance(spec.frame_bytes, str):
        told = f"level {spec.level}, {size_in_words(spec.frame_bytes)}: as the spec says"
        return ChosenLayout(
            Layout(spec.level, spec.frame_bytes, spec.shard_bytes), {"reason": told}
        )
    key = layout_key(job, source)
    made = manifests.find(storage, job.pipeline, NOUN, key)
    if made is None:
        start = time.perf_counter()
        sample = read_sample(job, source)
        if sample is None:
            told = "the default: no record could be sampled"
            return ChosenLayout(Layout(*_default(spec), spec.shard_bytes), {"reason": told})
        facts, measured = _measure(
            storage, job, sample, num_records=num_records, num_train=num_train
        )
        seconds = time.perf_counter() - start
        made = Manifest(
            job.pipeline,
            NOUN,
            key,
            inputs={source.noun: source.digest},
            facts=facts,
            measured=measured,
            seconds=seconds,
            usd=seconds / 3600 * job.usd_per_hour,
        )
        made = manifests.publish(storage, made)
        log(f"shards at {made.measured['reason']}")
    return ChosenLayout(Layout(**made.facts, shard_bytes=spec.shard_bytes), made.measured)


def layout_key(job: Job, source: Manifest) -> str:
    """Address of the layout: of what may change it, in steps so coarse that it rarely does.

    A power of four of source bytes, and of samples that the pipeline takes. Measured speeds and
    the machine's price are left out: whoever packs first decides for all machines on the store.
    """
    return digest(
        VERSION,
        source.facts["recipe"],
        job.spec.shards.model_dump(),
        job.storage_price.model_dump(),
        power_of_four(source.facts["num_bytes"]),
        power_of_four(num_samples_taken(job.spec)),
    )


def power_of_four(amount: float) -> int:
    """Exponent of the largest power of four that is not above the amount."""
    return math.floor(math.log2(max(1.0, amount)) / 2)


def _default(spec: ShardsSpec) -> tuple[int, int]:
    return (
        DEFAULT_LEVEL if isinstance(spec.level, str) else spec.level,
        DEFAULT_FRAME_BYTES if isinstance(spec.frame_bytes, str) else spec.frame_bytes,
    )


def _measure(
    storage: Storage, job: Job, sample: Sample, *, num_records: int, num_train: int
) -> tuple[dict[str, int], dict[str, Any]]:
    """Facts and measured numbers of the layout."""
    spec = job.spec.shards
    default = _default(spec)
    levels = frontier.LEVELS if isinstance(spec.level, str) else (spec.level,)
    sizes = frontier.FRAME_BYTES if isinstance(spec.frame_bytes, str) else (spec.frame_bytes,)
    num_samples = num_records * sample.samples_per_record
    life = Life(
        raw_bytes=size(sample.columns) / num_rows(sample.columns) * num_samples,
        train_share=num_train / num_records,
        reads=expected_reads(job.spec, num_train * sample.samples_per_record),
        shard_bytes=spec.shard_bytes,
        storage=job.storage_price,
        cache_bytes=ChunkCache.from_environment().budget_bytes if is_remote(job.store) else 0,
        usd_per_hour=job.usd_per_hour,
        num_cores=os.cpu_count() or 1,
    )
    link = frontier.measure_link(storage, f"{job.pipeline}/{NOUN}")
    points = frontier.measure(
        build_frames(job, sample.columns, sizes, default[1]),
        levels,
        lambda point, points: can_win(point, points, life, link),
    )
    choice = decide(points, default, life, link)
    measured = {
        "reason": choice.reason,
        "reads": life.reads,
        "raw_bytes": life.raw_bytes,
        "sample_bytes": size(sample.columns),
        "link": asdict(link),
        "points": [
            asdict(point) | {"bill": asdict(bill), "usd": bill.total}
            for point in points
            for bill in [make_bill(point, life, link)]
        ],
    }
    return {"level": choice.point.level, "frame_bytes": choice.point.frame_bytes}, measured


def build_frames(
    job: Job, columns: Columns, sizes: Sequence[int], default: int
) -> dict[int, list[bytes]]:
    """Frame size to the raw frames that the samples fill at it.

    Sizes that cannot hold a sample are left out. Of sizes that cut the samples alike, since all fit
    into one frame, one is given: the default where it is among them.
    """
    schema = codec.build_schema(build_encoder(job.spec.task).fields)
    total, sample_bytes = num_rows(columns), max(1, size(columns) // num_rows(columns))
    steps: dict[int, int] = {}
    others = [each for each in sizes if each != default and each >= sample_bytes]
    for frame_bytes in (default, *others):
        steps.setdefault(min(total, max(1, frame_bytes // sample_bytes)), frame_bytes)
    return {
        frame_bytes: [
            codec.encode_batch(cut(columns, start, min(start + step, total)), schema)
            for start in range(0, total, step)
        ]
        for step, frame_bytes in steps.items()
    }


def read_sample(job: Job, source: Manifest, most_bytes: int = SAMPLE_BYTES) -> Sample | None:
    """Samples from runs of files, spread evenly over the source bytes; the same every time.

    None where the files at these places hold no usable record.
    """
    encoder = build_encoder(job.spec.task, tokenizer_of_job(job))
    numbers = spread([entry["num_bytes"] for entry in source.facts["files"]], most_bytes)
    bytes_per_file = most_bytes // min(RUNS, len(numbers))

    def read(file: SourceFile) -> list[Value]:
        values: list[Value] = []
        num_bytes = 0
        for found in read_values(file, job, encoder):
            if not isinstance(found, Rejection):
                values.append(found)
                num_bytes += len(found.inputs)
            if num_bytes >= bytes_per_file:
                break
        return values

    with ThreadPoolExecutor(READERS) as pool:
        files = [listed_file(job, source, number) for number in numbers]
        values = [value for found in pool.map(read, files) for value in found]
    if not values:
        return None
    # Short texts in long blocks grow many times over: a few tell by how much.
    few = thin(values, 64)
    value_bytes = size(encoder.samples(few, LabelIndex())) / len(few)
    some = thin(values, int(most_bytes / value_bytes))
    columns = encoder.samples(some, LabelIndex())
    samples_per_record = num_rows(columns) / len(some)
    most_samples = max(1, int(num_rows(columns) * most_bytes / size(columns)))
    return Sample(cut(columns, 0, most_samples), samples_per_record)


def thin(values: Sequence[T], count: int) -> Sequence[T]:
    """About `count` of the values and one at least, at RUNS places, neighbors together."""
    if len(values) <= count:
        return values
    step = max(1, count // RUNS)
    starts = np.linspace(0, len(values) - step, min(RUNS, max(1, count))).astype(np.int64)
    return [values[i] for i in np.unique(starts[:, None] + np.arange(step)).tolist()]


def spread(file_bytes: Sequence[int], most_bytes: int) -> list[int]:
    """Numbers of the files to sample: runs of files that start evenly spread over the bytes."""
    ends = np.cumsum(file_bytes)
    starts = np.searchsorted(ends, ends[-1] * np.arange(RUNS) / RUNS, side="right")
    runs = sorted({min(int(start), len(ends) - 1) for start in starts})
    chosen = []
    for first, stop in zip(runs, [*runs[1:], len(ends)], strict=True):
        num_bytes = 0
        for number in islice(range(first, stop), FILES_PER_RUN):
            if num_bytes >= max(1, most_bytes // len(runs)):
                break
            chosen.append(number)
            num_bytes += file_bytes[number]
    return chosen
