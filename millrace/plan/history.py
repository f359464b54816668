"""The history of a pipeline: one entry for each step that ran, with what was predicted of it.

<pipeline>/history/<noun>/<when>-<key>.json     written once, by the process that ran the step

What is reused leaves no entry. The newest entries feed the next predictions.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from pydantic import Field

from millrace.errors import CorruptError, ExistsError, MillraceError, NotFoundError
from millrace.frozen import Frozen, NonNegativeInt, digest
from millrace.manifest import KEY_CHARS, Manifest
from millrace.plan.fit import Run
from millrace.plan.spread import Interval
from millrace.storage import Storage
from millrace.telemetry import log
from millrace.work import NonNegative, Timing, Work

MOST_ENTRIES = 40
"""Of a noun: older ones tell of older code, and each is a request."""
READS_AT_ONCE = 8
_PASSED_OVER = "It is passed over: predictions go by the others"


class Entry(Frozen):
    """What one step of a pipeline took."""

    pipeline: str
    noun: str
    key: str
    made_at: str
    machine: str
    """Kind of the machine in the price file."""
    num_cores: NonNegativeInt
    """Of the machine."""
    seconds: NonNegative
    """As the manifest tells them."""
    outside_seconds: NonNegative = 0.0
    """Of the step's own process beyond them: a training's launch and its end."""
    usd_per_hour: NonNegative
    size: NonNegative = 0.0
    """What the step's time grows with, in the unit of its noun."""
    predicted: Interval | None = None
    """Seconds as they were predicted, where they were."""
    work: Work | None = None
    """Of a training."""
    timing: Timing | None = None
    """Likewise."""
    memory_bytes: NonNegativeInt = 0
    """The most that the first rank has held; 0: not known."""
    joules: Annotated[float, Field(ge=0)] = 0.0
    """Measured by the machine; 0: it does not tell."""

    @property
    def path(self) -> str:
        """Where it lies below the store."""
        return path_of(self.pipeline, self.noun, self.made_at, self.key)

    @property
    def usd(self) -> float:
        """What it cost."""
        return self.seconds / 3600 * self.usd_per_hour

    @property
    def run(self) -> Run | None:
        """The training that it tells of."""
        if self.work is None or self.timing is None:
            return None
        return Run(work=self.work, timing=self.timing)

    def to_bytes(self) -> bytes:
        """JSON with a seal over all of it, for `from_bytes`."""
        body = self.model_dump(mode="json")
        return json.dumps(body | {"seal": digest(body)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, path: str) -> "Entry":
        """Inverse of `to_bytes`; CorruptError if it is not what was sealed."""
        try:
            body = json.loads(data)
            told, found = body.pop("seal"), digest(body)
            entry = cls.model_validate(body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found = " ".join(str(error).split())
            raise CorruptError(f"read the entry {path}", found, _PASSED_OVER) from error
        if told != found:
            told_apart = f"its content hashes to {found}"
            raise CorruptError(f"read the entry {path} (sealed {told})", told_apart, _PASSED_OVER)
        return entry


def path_of(pipeline: str, noun: str, made_at: str, key: str) -> str:
    """Path of an entry: names sort by time."""
    when = "".join(char for char in made_at.split("+", maxsplit=1)[0] if char.isalnum())
    return f"{pipeline}/history/{noun}/{when}-{key[:KEY_CHARS]}.json"


def write(storage: Storage, entry: Entry) -> None:
    """Keep an entry; who wrote one of the same name first is left alone."""
    try:
        storage.write(entry.path, entry.to_bytes(), if_absent=True)
    except ExistsError:
        log(f"{entry.path} is there already: another run made the same at the same second")


def of_manifest(storage: Storage, made: Manifest) -> Entry | None:
    """The entry of the run that made this; None where it left none, or the store keeps silent."""
    try:
        return _read(storage, path_of(made.pipeline, made.noun, made.made_at, made.key))
    except MillraceError:
        return None


def newest(storage: Storage, pipeline: str, noun: str, most: int = MOST_ENTRIES) -> list[Entry]:
    """The newest entries of a noun, oldest of them first; those that are damaged are left out."""
    paths = sorted(storage.list(f"{pipeline}/history/{noun}"))[-most:]
    if not paths:
        return []
    with ThreadPoolExecutor(min(READS_AT_ONCE, len(paths))) as pool:
        found = pool.map(lambda path: _read(storage, path), paths)
        return [entry for entry in found if entry is not None]


def _read(storage: Storage, path: str) -> Entry | None:
    def prove(data: bytes) -> None:
        Entry.from_bytes(data, path)

    try:
        return Entry.from_bytes(storage.read(path, prove=prove), path)
    except NotFoundError:
        return None
    except CorruptError as error:
        log(str(error))
        return None


def runs_of(entries: Sequence[Entry], machine: str, device: str) -> list[Run]:
    """The trainings among entries of this kind of machine and device."""
    found = [entry.run for entry in entries if entry.machine == machine]
    return [run for run in found if run is not None and run.work.device == device]


def entry_of(
    made: Manifest, *, machine: str, usd_per_hour: float, predicted: Interval | None, **more: Any
) -> Entry:
    """The entry of a run that made this manifest, here and now.

    Args:
        made: What it made.
        machine: Kind of this machine in the price file.
        usd_per_hour: Its price.
        predicted: What was predicted.
        more: Further fields of the entry.
    """
    measured = made.measured
    return Entry(
        pipeline=made.pipeline,
        noun=made.noun,
        key=made.key,
        made_at=made.made_at,
        machine=machine,
        num_cores=os.cpu_count() or 1,
        seconds=made.seconds,
        usd_per_hour=usd_per_hour,
        predicted=predicted,
        work=Work.model_validate(measured["work"]) if "work" in measured else None,
        timing=Timing.model_validate(measured["timing"]) if "timing" in measured else None,
        memory_bytes=int(measured.get("memory_bytes", 0)),
        **more,
    )


def read_quietly(storage: Storage, pipeline: str, noun: str) -> list[Entry]:
    """Like `newest`; empty where the store does not answer, since no step hangs on its history."""
    try:
        return newest(storage, pipeline, noun)
    except MillraceError as error:
        log(f"no prediction without the history of {pipeline}/{noun}: {error}")
        return []
