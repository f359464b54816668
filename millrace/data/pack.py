"""Pack source files into shards: units of files, each packed once and kept until a file changes.

records.npy --> duplicates dropped, splits drawn --> files divided among the sources of the mixture
each source --> units of files --> packed already? keep
                               --> else read, encode, write
all units' shards --> manifest
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace import manifest as manifests
from millrace.data.codec import FORMAT_VERSION
from millrace.data.fields import build_encoder
from millrace.data.ingest import NOUN as SOURCE_FILES
from millrace.data.ingest import READERS, Ids, listed_file, load_ids
from millrace.data.layout import choose_layout
from millrace.data.mixture import WHOLE, divide
from millrace.data.shard import Layout
from millrace.data.splits import SPLITS, Kept, count_overlap, draw_splits, first_of_each
from millrace.data.statistics import mean_and_deviation
from millrace.data.tokenizer import NOUN as TOKENIZER
from millrace.data.unit import NOUN as UNIT_NOUN
from millrace.data.unit import Unit, pack_unit
from millrace.data.workers import Task, num_cores, num_workers, work_through
from millrace.errors import SourceError
from millrace.frozen import digest
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, Storage
from millrace.telemetry import Progress

NOUN = "shards"
VERSION = 3
LARGEST_UNIT = 4  # times unit_bytes

Rows = npt.NDArray[np.int64]


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


def pack(job: Job) -> Manifest:
    """Pack what is not packed yet and describe the whole.

    Raises:
        SourceError: A file changed since it was listed, a split or a source's train split came
            out empty, or `train.mix` does not fit the files.
    """
    storage = FsspecStorage(job.store)
    source = manifests.read(storage, job.inputs[SOURCE_FILES])
    ids = load_ids(storage, source)
    kept = first_of_each(ids[:, 1])
    splits = draw_splits(ids[:, 0], job.spec.split)
    _refuse_empty_split(job, splits[kept])
    sources = _divide(job, source, splits, kept)
    num_train = int((splits[kept] == 0).sum())
    chosen = choose_layout(storage, job, source, num_records=int(kept.sum()), num_train=num_train)
    tokenizer = [manifests.read(storage, job.inputs[TOKENIZER])] if TOKENIZER in job.inputs else []
    recipe = _recipe(job, source, tokenizer, chosen.layout)
    planned = {
        name: _plan(job, source, ids, kept, recipe, chosen.layout, numbers)
        for name, numbers in sources.items()
    }
    packed = _pack_units(storage, job, [unit for units in planned.values() for unit in units])
    names = [name for name, units in planned.items() for _ in units]
    named = list(zip(names, packed, strict=True))
    made = _describe(job, source, named, ids=ids[kept], splits=splits[kept])
    told = {made.noun: made.digest for made in tokenizer}
    return replace(
        made,
        inputs={**made.inputs, **told},
        files=(*made.files, *(file for made in tokenizer for file in made.files)),
        facts={**made.facts, "layout": chosen.facts},
        measured={"layout": chosen.measured},
    )


def _pack_units(storage: Storage, job: Job, units: Sequence[Unit]) -> list[Manifest]:
    """The manifest of every unit; those that are not packed yet are packed on every core."""
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda u: manifests.find(storage, job.pipeline, UNIT_NOUN, u.key), units)
    made = {unit.key: manifest for unit, manifest in zip(units, found, strict=True) if manifest}
    missing = [unit for unit in units if unit.key not in made]
    progress = Progress(
        "units", total=len(units), done=len(units) - len(missing), usd_per_hour=job.usd_per_hour
    )
    if not missing:
        progress.tell()
    num_bytes = sum(file.num_bytes for unit in missing for file in unit.files)
    size = num_workers(len(missing), num_bytes, [job.store, *job.spec.source.urls.values()])
    # Workers keep every core busy by themselves; alone, this process compresses on all of them.
    threads = 1 if size > 1 else num_cores()
    task: Task[Unit, Manifest] = Task(partial(pack_unit, job, threads), str)
    for number, manifest in work_through(task, missing, size):
        made[missing[number].key] = progress.step(manifest)
    return [made[unit.key] for unit in units]


def _divide(
    job: Job, source: Manifest, splits: npt.NDArray[np.int8], kept: Kept
) -> dict[str, list[int]]:
    """Numbers of the files of each source of the mixture, each with something to train on."""
    entries = source.facts["files"]
    sources = divide([entry["path"] for entry in entries], job.spec.mix_globs)
    for name, numbers in sources.items():
        rows = _rows(entries, numbers)
        is_train = kept[rows] & (splits[rows] == 0)
        if not is_train.any():
            raise SourceError(
                f"mix the files of `{name}` into the training",
                f"their train split is empty ({len(rows)} records, {int(kept[rows].sum())} of "
                "them no duplicates)",
                "Add records, or let another key of `train.mix` take the files",
            )
    return sources


def _rows(entries: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> Rows:
    """Where the records of these files stand in the source's ids."""
    return np.concatenate([np.arange(*entries[number]["records"]) for number in numbers])


def _recipe(job: Job, source: Manifest, tokenizer: Sequence[Manifest], layout: Layout) -> str:
    """What, besides a unit's own records, decides how it is packed."""
    spec = job.spec
    shards = spec.shards.model_dump() | asdict(layout)
    encoded = [made.digest for made in tokenizer]
    return digest(VERSION, source.facts["recipe"], spec.split.model_dump(), shards, *encoded)


def _plan(
    job: Job,
    source: Manifest,
    ids: Ids,
    kept: Kept,
    recipe: str,
    layout: Layout,
    numbers: Sequence[int],
) -> list[Unit]:
    """The units of the files of these numbers; which source they are of is not their affair."""
    spec, entries = job.spec, source.facts["files"]
    units = []
    for places in cut_units([entries[number] for number in numbers], spec.shards.unit_bytes):
        indices = [numbers[place] for place in places]
        rows = _rows(entries, indices)
        mask = kept[rows]
        key = digest(
            recipe,
            [entries[i]["digest"] for i in indices],
            hashlib.sha256(np.packbits(mask).tobytes()).hexdigest(),
        )
        files = tuple(listed_file(job, source, i) for i in indices)
        units.append(Unit(key, files, ids[rows], mask, layout))
    return units


def _refuse_empty_split(job: Job, splits: npt.NDArray[np.int8]) -> None:
    counts = {split: int((splits == number).sum()) for number, split in enumerate(SPLITS)}
    for split, count in counts.items():
        if not count:
            raise SourceError(
                f"split {len(splits)} distinct records of {job.spec.source.place}",
                f"the {split} split is empty ({counts})",
                "Add records, enlarge `split`, or take another `split.seed`",
            )


def _describe(
    job: Job,
    source: Manifest,
    named: Sequence[tuple[str, Manifest]],
    *,
    ids: Ids,
    splits: npt.NDArray[np.int8],
) -> Manifest:
    encoder = build_encoder(job.spec.task)
    packed = [unit for _, unit in named]
    shards = [
        shard | ({"source": name} if name != WHOLE else {})
        for name, unit in named
        for shard in unit.facts["shards"]
    ]
    classes = _sorted_classes({name for shard in shards for name in shard["classes"]})
    if encoder.label and len(classes) < 2:
        raise SourceError(
            f"find the classes in field `{encoder.label}`",
            f"there is only {classes}",
            "A classification needs two or more: check `task.label`",
        )
    mean, deviation = mean_and_deviation([unit.facts["statistics"] for unit in packed])
    facts = {
        "format": FORMAT_VERSION,
        "fields": {
            name: [field.dtype, list(field.shape)] for name, field in encoder.fields.items()
        },
        "classes": classes,
        "mean": mean,
        "deviation": deviation,
        "splits": {
            split: _sum_split(split, number, shards, splits) for number, split in enumerate(SPLITS)
        },
        "num_duplicates": source.facts["num_duplicates"],
        "overlapping_records": count_overlap(ids[:, 0], splits),
        "num_frames": sum(len(shard["frames"]["num_bytes"]) for shard in shards),
        "frames_read_back": sum(unit.facts["frames_read_back"] for unit in packed),
        "source_bytes": source.facts["num_bytes"],
        "shards": shards,
    }
    facts.update(encoder.facts)
    if job.spec.train.mix:
        facts["sources"] = _samples_of_sources(shards)
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


def _samples_of_sources(shards: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Samples in each split, by source."""
    found = {shard["source"]: dict.fromkeys(SPLITS, 0) for shard in shards}
    for shard in shards:
        found[shard["source"]][shard["split"]] += sum(shard["frames"]["num_samples"])
    return found


def _sorted_classes(classes: set[str]) -> list[str]:
    """Whole numbers in numeric order (`1` after `01`, its equal), else alphabetic."""
    if all(name.removeprefix("-").isdecimal() for name in classes):
        return sorted(classes, key=lambda name: (int(name), name))
    return sorted(classes)
