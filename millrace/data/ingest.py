"""Profile the source files: read those that are new or changed, identify every record.

    listing -> unchanged since the last manifest? -> its record ids are kept
            -> new or changed                     -> read, records identified, rejections counted

The manifest's file `records.npy` holds, in listing order, (split_id, content_id) of each record:
enough to find duplicates and to draw splits without reading a source file again. Fields that the
gate divides records by lie beside it.
"""

import hashlib
import io
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from millrace import manifest as manifests
from millrace.data.fields import build_encoder
from millrace.data.listing import SourceFile, list_source, locate
from millrace.data.properties import FILE as PROPERTIES
from millrace.data.properties import NOTHING as NO_PROPERTIES
from millrace.data.properties import Properties, properties_of
from millrace.data.records import Rejection, format_of, read_records
from millrace.data.values import Encoder, UnusableRecordError, Value
from millrace.data.workers import Task, num_workers, work_through
from millrace.errors import CorruptError, NotFoundError, SourceError
from millrace.frozen import digest
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, Storage, StoredFile
from millrace.telemetry import Progress

NOUN = "source_files"
IDS = "records.npy"
VERSION = 3
SHOWN_REJECTIONS = 50
READERS = 8
GROUP_BYTES, GROUP_FILES = 4 * 2**20, 256

Ids = npt.NDArray[np.uint64]
"""(records, 2): split_id and content_id."""


@dataclass(frozen=True)
class ReadFile:
    """A source file's records as identified."""

    ids: Ids
    rejections: tuple[Rejection, ...]
    properties: Properties = NO_PROPERTIES

    @property
    def digest(self) -> str:
        """Of the records' contents in order, and of what was rejected."""
        told = repr([(item.where, item.reason) for item in self.rejections]).encode()
        return hashlib.sha256(self.ids.tobytes() + told).hexdigest()[:32]


def read_values(file: SourceFile, job: Job, encoder: Encoder) -> Iterator[Value | Rejection]:
    """What the task takes from each record of a file, in order; empty ones are skipped.

    An empty text has no sample. It is passed over like an empty line, not rejected: empty files
    are usual among source code.
    """
    fields = job.spec.gate.fields
    for found in read_records(file, job.spec.source, (*encoder.needs, *fields)):
        if isinstance(found, Rejection):
            yield found
            continue
        try:
            value = encoder.extract(found.record)
        except UnusableRecordError as error:
            yield Rejection(found.where, str(error))
        else:
            if fields:
                value = replace(value, properties=properties_of(found.record, fields))
            if value.inputs:
                yield value


def ingest(job: Job) -> Manifest:
    """List the source, read what changed, publish the profile.

    Raises:
        SourceError: No file, no usable record, a damaged file, or too many rejected records.
    """
    storage = FsspecStorage(job.store)
    files = list_source(job.spec.source, job.folder)
    # Several URLs are told by the fingerprints: a new one leaves the other sources' files alone.
    names_urls = not isinstance(job.spec.source.url, str)
    reading = job.spec.source.model_dump(exclude={"url"} if names_urls else None)
    recipe = digest(VERSION, reading, job.spec.task.model_dump())
    known = _known(storage, job, recipe)
    read = _identify_files(job, files, known)
    _refuse_unusable(job, files, read)
    return _publish(storage, job, recipe, files, read)


def _identify_files(
    job: Job, files: Sequence[SourceFile], known: Mapping[tuple[str, str], ReadFile]
) -> list[ReadFile]:
    """The records of every file; those that are not known are read on every core."""
    read = {
        file.path: known[file.path, file.fingerprint]
        for file in files
        if (file.path, file.fingerprint) in known
    }
    groups = group_files([file for file in files if file.path not in read])
    progress = Progress("source files", total=len(files), done=len(read))
    if not groups:
        progress.tell()
    num_bytes = sum(file.num_bytes for group in groups for file in group)
    size = num_workers(len(groups), num_bytes, [job.store, *job.spec.source.urls.values()])
    task: Task[list[SourceFile], list[ReadFile]] = Task(
        partial(identify_group, job), lambda group: f"read {group[0].path} and what follows it"
    )
    for number, found in work_through(task, groups, size):
        for file, each in zip(groups[number], found, strict=True):
            read[file.path] = progress.step(each)
    return [read[file.path] for file in files]


def group_files(files: Sequence[SourceFile]) -> list[list[SourceFile]]:
    """Files, in order, in groups that are worth a trip to a worker."""
    groups: list[list[SourceFile]] = []
    num_bytes = 0
    for file in files:
        if not groups or num_bytes >= GROUP_BYTES or len(groups[-1]) >= GROUP_FILES:
            groups.append([])
            num_bytes = 0
        groups[-1].append(file)
        num_bytes += file.num_bytes
    return groups


def identify_group(job: Job, files: Sequence[SourceFile]) -> list[ReadFile]:
    """The records of each file; several are read at once, as a store answers late."""
    encoder = build_encoder(job.spec.task)
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda file: _identify(file, job, encoder), files))


def _identify(file: SourceFile, job: Job, encoder: Encoder) -> ReadFile:
    ids, rejections, properties = array("Q"), [], []
    for value in read_values(file, job, encoder):
        if isinstance(value, Rejection):
            rejections.append(value)
        else:
            ids.extend((value.split_id, value.content_id))
            properties.append(value.properties)
    found = np.frombuffer(ids, np.uint64).reshape(-1, 2)
    return ReadFile(found, tuple(rejections), Properties.of(properties, len(job.spec.gate.fields)))


def _known(storage: Storage, job: Job, recipe: str) -> dict[tuple[str, str], ReadFile]:
    """By (path, fingerprint): the files that the current manifest of the same recipe read.

    Where the manifest or its ids are lost or damaged, nothing is known and all is read again.
    """
    try:
        last = manifests.current(storage, job.pipeline, NOUN)
        if last.facts["recipe"] != recipe:
            return {}
        if tuple(last.facts.get("properties", ())) != job.spec.gate.fields:
            return {}
        ids, properties = load_ids(storage, last), Properties.load(storage, last)
    except (NotFoundError, CorruptError):
        return {}
    known = {}
    for entry, fingerprint in zip(last.facts["files"], last.measured["fingerprints"], strict=True):
        start, stop = entry["records"]
        rejections = tuple(Rejection(*item) for item in entry["rejections"])
        if fingerprint and len(rejections) == entry["num_rejected"]:
            known[entry["path"], fingerprint] = ReadFile(
                ids[start:stop], rejections, properties[start:stop]
            )
    return known


def load_ids(storage: Storage, manifest: Manifest) -> Ids:
    """The record ids of a source_files manifest, shape (records, 2)."""
    data = manifest.file(IDS).read(storage)
    loaded: Ids = np.load(io.BytesIO(data), allow_pickle=False)
    return loaded


def listed_file(job: Job, source: Manifest, number: int) -> SourceFile:
    """A file of a source_files manifest, found where the job's folder says it lies now."""
    entry = source.facts["files"][number]
    return SourceFile(
        entry["path"],
        locate(job.spec.source, job.folder, entry["path"]),
        entry["num_bytes"],
        source.measured["fingerprints"][number],
    )


def _refuse_unusable(job: Job, files: list[SourceFile], read: list[ReadFile]) -> None:
    num_records = sum(len(found.ids) for found in read)
    rejections = [item for found in read for item in found.rejections]
    share = len(rejections) / max(1, num_records + len(rejections))
    shown = "; ".join(f"{item.where}: {item.reason}" for item in rejections[:3])
    asked = f"find usable records in {len(files)} files of {job.spec.source.place}"
    if not num_records:
        raise SourceError(
            asked,
            f"none: {len(rejections)} rejected" + (f" ({shown})" if shown else ""),
            "Check `source.format` and the fields that `task` names",
        )
    if share > job.spec.source.max_rejected:
        raise SourceError(
            asked,
            f"{len(rejections)} of {num_records + len(rejections)} rejected ({shown})",
            "Mend the records, or raise `source.max_rejected` "
            f"(now {job.spec.source.max_rejected})",
        )


def _publish(
    storage: Storage, job: Job, recipe: str, files: list[SourceFile], read: list[ReadFile]
) -> Manifest:
    stops = np.cumsum([len(found.ids) for found in read]).tolist()
    entries = [
        {
            "path": file.path,
            "num_bytes": file.num_bytes,
            "digest": found.digest,
            "records": [stop - len(found.ids), stop],
            "num_rejected": len(found.rejections),
            "rejections": [[r.where, r.reason] for r in found.rejections[:SHOWN_REJECTIONS]],
        }
        for file, found, stop in zip(files, read, stops, strict=True)
    ]
    ids = np.concatenate([found.ids for found in read])
    buffer = io.BytesIO()
    np.save(buffer, ids, allow_pickle=False)
    contents = {IDS: buffer.getvalue()}
    facts = {
        "recipe": recipe,
        "files": entries,
        "num_bytes": sum(file.num_bytes for file in files),
        "num_records": len(ids),
        "num_rejected": sum(len(found.rejections) for found in read),
        "num_duplicates": len(ids) - len(np.unique(ids[:, 1])),
        "bytes_by_format": _bytes_by_format(job, files),
    }
    told: list[str] = []
    if fields := job.spec.gate.fields:
        properties = Properties.join([found.properties for found in read])
        contents[PROPERTIES] = properties.to_bytes()
        facts["properties"] = dict(zip(fields, map(list, properties.values), strict=True))
        told = [digest(facts["properties"]), hashlib.sha256(contents[PROPERTIES]).hexdigest()]
    # The fingerprints too, or a file that was only touched would be read again every time.
    fingerprints = [file.fingerprint for file in files]
    key = digest(
        recipe, [(entry["path"], entry["digest"]) for entry in entries], fingerprints, *told
    )
    folder = manifests.folder(job.pipeline, NOUN, key)
    stored = tuple(
        StoredFile.written(storage, f"{folder}/{name}", data) for name, data in contents.items()
    )
    measured = {"fingerprints": fingerprints}
    return Manifest(job.pipeline, NOUN, key, files=stored, facts=facts, measured=measured)


def _bytes_by_format(job: Job, files: list[SourceFile]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[format_of(file, job.spec.source)] += file.num_bytes
    return dict(sizes)
