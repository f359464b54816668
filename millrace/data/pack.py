"""Pack source files into shards: units of files, each packed once and kept until a file changes.

records.npy --> duplicates dropped, splits drawn --> units of files --> packed already? keep
                                                                    --> else read, encode, write
all units' shards --> manifest
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace import manifest as manifests
from millrace.data.codec import FORMAT_VERSION
from millrace.data.fields import LabelIndex, Value, build_encoder
from millrace.data.ingest import NOUN as SOURCE_FILES
from millrace.data.ingest import READERS, Ids, listed_file, load_ids, read_values
from millrace.data.layout import choose_layout
from millrace.data.listing import SourceFile
from millrace.data.records import Rejection
from millrace.data.shard import Layout, Shard, ShardReader, ShardWriter
from millrace.data.statistics import Statistics, mean_and_deviation, sum_inputs
from millrace.errors import SourceError
from millrace.frozen import digest
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.spec import ClassificationTask, SplitSpec
from millrace.storage import FsspecStorage, Storage
from millrace.telemetry import Progress

NOUN = "shards"
UNIT_NOUN = "shards/units"
VERSION = 2
SPLITS = ("train", "validation", "test")
LARGEST_UNIT = 4  # times unit_bytes
Kept = npt.NDArray[np.bool_]


def draw_splits(split_ids: npt.NDArray[np.uint64], spec: SplitSpec) -> npt.NDArray[np.int8]:
    """Index into SPLITS for each record, from its id alone: a record never changes split.

    The id is mixed with the seed by splitmix64 (Steele, Lea and Flood 2014) and read as a number
    in [0, 1): the lowest `test` share is the test split, the next `validation` share validation.
    """
    with np.errstate(over="ignore"):
        mixed = split_ids + np.uint64((spec.seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    place = mixed / 2.0**64
    return np.where(
        place < spec.test, 2, np.where(place < spec.test + spec.validation, 1, 0)
    ).astype(np.int8)


def first_of_each(content_ids: npt.NDArray[np.uint64]) -> Kept:
    """True for the first record of each content, False for its exact duplicates."""
    kept = np.zeros(len(content_ids), bool)
    kept[np.unique(content_ids, return_index=True)[1]] = True
    return kept


def cut_units(files: Sequence[Mapping[str, Any]], unit_bytes: int) -> list[list[int]]:
    """Indices of files, in order, grouped into units of about `unit_bytes`.

    A unit ends after a file whose path's hash says so, not at a running total: adding or removing
    a file changes the unit it falls into and no other.
    """
    mean_bytes = sum(file["num_bytes"] for file in files) / len(files)
    files_per_unit = 2 ** max(0, round(np.log2(unit_bytes / max(1.0, mean_bytes))))
    units: list[list[int]] = [[]]
    size = 0
    for i, file in enumerate(files):
        units[-1].append(i)
        size += file["num_bytes"]
        path_hash = int(hashlib.sha256(file["path"].encode()).hexdigest()[:8], 16)
        if path_hash % files_per_unit == 0 or size >= LARGEST_UNIT * unit_bytes:
            units.append([])
            size = 0
    return [unit for unit in units if unit]


@dataclass(frozen=True)
class _Unit:
    """Source files packed together, and which of their records to keep."""

    key: str
    files: tuple[SourceFile, ...]
    ids: Ids
    kept: Kept
    layout: Layout


def pack(job: Job) -> Manifest:
    """Pack what is not packed yet and describe the whole.

    Raises:
        SourceError: A file changed since it was listed, or a split came out empty.
    """
    storage = FsspecStorage(job.store)
    source = manifests.read(storage, job.inputs[SOURCE_FILES])
    ids = load_ids(storage, source)
    kept = first_of_each(ids[:, 1])
    splits = draw_splits(ids[:, 0], job.spec.split)
    _refuse_empty_split(job, splits[kept])
    num_train = int((splits[kept] == 0).sum())
    chosen = choose_layout(storage, job, source, num_records=int(kept.sum()), num_train=num_train)
    units = _plan(job, source, ids, kept, chosen.layout)
    progress = Progress("units", total=len(units), usd_per_hour=job.usd_per_hour)
    packed = [
        progress.step(
            manifests.find(storage, job.pipeline, UNIT_NOUN, unit.key)
            or _pack_unit(storage, job, unit)
        )
        for unit in units
    ]
    made = _describe(storage, job, source, packed, ids=ids[kept], splits=splits[kept])
    return replace(
        made,
        facts={**made.facts, "layout": chosen.facts},
        measured={"layout": chosen.measured},
    )


def _plan(job: Job, source: Manifest, ids: Ids, kept: Kept, layout: Layout) -> list[_Unit]:
    spec, entries = job.spec, source.facts["files"]
    shards = spec.shards.model_dump() | asdict(layout)
    recipe = digest(VERSION, source.facts["recipe"], spec.split.model_dump(), shards)
    units = []
    for indices in cut_units(entries, spec.shards.unit_bytes):
        start, stop = entries[indices[0]]["records"][0], entries[indices[-1]]["records"][1]
        mask = kept[start:stop]
        key = digest(
            recipe,
            [entries[i]["digest"] for i in indices],
            hashlib.sha256(np.packbits(mask).tobytes()).hexdigest(),
        )
        files = tuple(listed_file(job, source, i) for i in indices)
        units.append(_Unit(key, files, ids[start:stop], mask, layout))
    return units


def _pack_unit(storage: Storage, job: Job, unit: _Unit) -> Manifest:
    encoder = build_encoder(job.spec.task)
    labels = LabelIndex()
    values = list(_read_unit(job, unit))
    splits = draw_splits(unit.ids[unit.kept, 0], job.spec.split)
    folder = manifests.folder(job.pipeline, UNIT_NOUN, unit.key)
    shards: list[Shard] = []
    statistics: Statistics = []
    proven = 0
    for number, split in enumerate(SPLITS):
        chosen = [value for value, drawn in zip(values, splits, strict=True) if drawn == number]
        if not chosen:
            continue
        columns = encoder.samples(chosen, labels)
        if split == "train" and "inputs" in columns:
            statistics = sum_inputs(columns["inputs"])
        writer = ShardWriter(storage, folder, encoder.fields, split=split, layout=unit.layout)
        writer.write(columns)
        written = writer.close(tuple(labels.classes))
        proven += sum(ShardReader(storage, encoder.fields).prove(shard) for shard in written)
        shards += written
    return manifests.publish(
        storage,
        Manifest(
            job.pipeline,
            UNIT_NOUN,
            unit.key,
            files=tuple(shard.file for shard in shards),
            facts={
                "shards": [shard.to_dict() for shard in shards],
                "statistics": statistics,
                "frames_read_back": proven,
            },
        ),
    )


def _read_unit(job: Job, unit: _Unit) -> Iterator[Value]:
    """The kept values of the unit's files, in order, proven to be those that were listed."""
    encoder = build_encoder(job.spec.task)

    def read(file: SourceFile) -> list[Value]:
        found = read_values(file, job, encoder)
        return [value for value in found if not isinstance(value, Rejection)]

    number = 0
    with ThreadPoolExecutor(READERS) as pool:
        for file, values in zip(unit.files, pool.map(read, unit.files), strict=True):
            for value in values:
                if number >= len(unit.ids) or value.content_id != unit.ids[number, 1]:
                    raise _changed(file)
                if unit.kept[number]:
                    yield value
                number += 1
    if number != len(unit.ids):
        raise _changed(unit.files[-1])


def _changed(file: SourceFile) -> SourceError:
    return SourceError(
        f"pack {file.path}",
        "its records differ from those that source_files listed",
        "It was changed in between: materialize from source_files again",
    )


def _refuse_empty_split(job: Job, splits: npt.NDArray[np.int8]) -> None:
    counts = {split: int((splits == number).sum()) for number, split in enumerate(SPLITS)}
    for split, count in counts.items():
        if not count:
            raise SourceError(
                f"split {len(splits)} distinct records of {job.spec.source.url}",
                f"the {split} split is empty ({counts})",
                "Add records, enlarge `split`, or take another `split.seed`",
            )


def _describe(
    storage: Storage,
    job: Job,
    source: Manifest,
    packed: Sequence[Manifest],
    *,
    ids: Ids,
    splits: npt.NDArray[np.int8],
) -> Manifest:
    shards = [shard for unit in packed for shard in unit.facts["shards"]]
    classes = _sorted_classes({name for shard in shards for name in shard["classes"]})
    if isinstance(job.spec.task, ClassificationTask) and len(classes) < 2:
        raise SourceError(
            f"find the classes in field `{job.spec.task.label}`",
            f"there is only {classes}",
            "A classification needs two or more: check `task.label`",
        )
    mean, deviation = mean_and_deviation([unit.facts["statistics"] for unit in packed])
    facts = {
        "format": FORMAT_VERSION,
        "fields": {
            name: [field.dtype, list(field.shape)]
            for name, field in build_encoder(job.spec.task).fields.items()
        },
        "classes": classes,
        "mean": mean,
        "deviation": deviation,
        "splits": {
            split: _sum_split(split, number, shards, splits) for number, split in enumerate(SPLITS)
        },
        "num_duplicates": source.facts["num_duplicates"],
        "overlapping_records": _overlap(ids[:, 0], splits),
        "num_frames": sum(len(shard["frames"]["num_bytes"]) for shard in shards),
        "frames_read_back": sum(unit.facts["frames_read_back"] for unit in packed),
        "source_bytes": source.facts["num_bytes"],
        "shards": shards,
    }
    files = tuple(file for unit in packed for file in unit.files)
    inputs = {SOURCE_FILES: source.digest}
    return Manifest(job.pipeline, NOUN, job.key, inputs=inputs, files=files, facts=facts)


def _sum_split(
    split: str, number: int, shards: Sequence[Mapping[str, Any]], splits: npt.NDArray[np.int8]
) -> dict[str, int]:
    frames = [shard["frames"] for shard in shards if shard["split"] == split]
    return {
        "num_records": int((splits == number).sum()),
        "num_samples": sum(sum(table["num_samples"]) for table in frames),
        "raw_bytes": sum(sum(table["raw_bytes"]) for table in frames),
        "num_bytes": sum(sum(table["num_bytes"]) for table in frames),
    }


def _overlap(split_ids: npt.NDArray[np.uint64], splits: npt.NDArray[np.int8]) -> int:
    """How many inputs occur in more than one split."""
    pairs = np.unique(np.stack([split_ids, splits.astype(np.uint64)], axis=1), axis=0)
    return len(pairs) - len(np.unique(pairs[:, 0]))


def _sorted_classes(classes: set[str]) -> list[str]:
    """Whole numbers in numeric order (`1` after `01`, its equal), else alphabetic."""
    if all(name.removeprefix("-").isdecimal() for name in classes):
        return sorted(classes, key=lambda name: (int(name), name))
    return sorted(classes)
