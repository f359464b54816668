"""The samples of one split of a pipeline's shards: frames, read and proven as they are asked for.

frame --> its chunk in the local cache? --> else fetched in one range read, kept
      --> decoded and proven --> damaged? --> fetched again, twice at the most
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from millrace.data import codec
from millrace.data.cache import ChunkCache, is_remote
from millrace.data.columns import Columns, Field, cut, num_rows
from millrace.data.order import chunk_starts
from millrace.data.shard import Shard, ShardReader
from millrace.errors import CorruptError
from millrace.manifest import Manifest
from millrace.storage import HEAL, Storage

THREADS = 2
ATTEMPTS = 3
"""A bit that was flipped on the way heals by fetching it again; one on the store does not."""
FETCHES = 16
"""Range reads in flight: with 50 ms of latency 1, 8 and 32 gave 4, 26 and 52 MiB/s."""


class Samples:
    """The frames of one split, in stored order.

    Args:
        storage: Where the shards lie.
        manifest: Of the shards.
        split: `train`, `validation` or `test`.
        source: Key of `train.mix`: only the samples of its files; empty: of all.
        cache: Keeps chunks fetched from a remote store; the environment's by default.

    Attributes:
        fields: Name to field of each column, as `frame` gives it.
        classes: What the numbers of a `label` column mean.
        samples_per_frame: int64 (frames).
        frame_bytes: int64 (frames), raw.
        chunk_starts: int64 (chunks), first frame of each.

    Raises:
        VersionError: The shards have a newer format.
        CorruptError: The manifest names an object outside of its pipeline.
        SpecError: The cache is smaller than a chunk.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        split: str,
        cache: ChunkCache | None = None,
        *,
        source: str = "",
    ) -> None:
        facts = manifest.facts
        codec.refuse_newer(int(facts["format"]), f"{storage.url}/{manifest.path}")
        self._storage, self.what = storage, f"the {split} split of {manifest.path}"
        stored = {
            name: Field(dtype, tuple(shape)) for name, (dtype, shape) in facts["fields"].items()
        }
        self._reader = ShardReader(storage, stored)
        self.fields: Mapping[str, Field] = stored | (
            {"label": Field("int64")} if "label" in stored else {}
        )
        self._shards = [
            Shard.from_dict(value)
            for value in facts["shards"]
            if value["split"] == split and (not source or value.get("source") == source)
        ]
        for shard in self._shards:
            _refuse_outside(shard.file.path, manifest)
        self.classes: Sequence[str] = tuple(facts["classes"])
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._classes = [
            np.array([numbers[name] for name in shard.classes], np.int64) for shard in self._shards
        ]
        self._lay_out()
        self._cache = (cache or ChunkCache.from_environment()) if is_remote(storage.url) else None
        if self._cache and len(self.chunk_starts):
            self._cache.refuse_smaller_than(int(self._chunk_bytes.max()))
        self._fetching: dict[int, Future[bytes]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def _lay_out(self) -> None:
        tables = [shard.frames for shard in self._shards]
        none = np.zeros(0, np.int64)
        self._shard_starts = np.cumsum([0, *(len(table) for table in tables)])
        self.samples_per_frame = np.concatenate([none, *(table.num_samples for table in tables)])
        self.frame_bytes = np.concatenate([none, *(table.raw_bytes for table in tables)])
        self._starts = np.concatenate([none, *(table.start for table in tables)])
        num_bytes = np.concatenate([none, *(table.num_bytes for table in tables)])
        self._checksums = np.concatenate([none, *(table.checksum for table in tables)])
        self._ends = self._starts + num_bytes
        self.chunk_starts = chunk_starts(self.frame_bytes, self._shard_starts[:-1])
        last = np.append(self.chunk_starts, len(num_bytes))[1:] - 1
        self._chunk_bytes = self._ends[last] - self._starts[self.chunk_starts]

    def __len__(self) -> int:
        return int(self.samples_per_frame.sum())

    @property
    def sample_bytes(self) -> int:
        """Mean raw bytes of a sample."""
        return int(self.frame_bytes.sum()) // max(1, len(self))

    def frame(self, number: int) -> Columns:
        """The columns of a frame, labels as numbers into the data set's classes.

        Raises:
            CorruptError: It is damaged, however often it is fetched.
        """
        shard_number = int(np.searchsorted(self._shard_starts, number, side="right")) - 1
        shard, index = self._shards[shard_number], number - int(self._shard_starts[shard_number])
        for attempt in range(1, ATTEMPTS + 1):
            try:
                columns = self._reader.decode(shard, index, self._compressed(number, shard))
                break
            except CorruptError:
                if attempt == ATTEMPTS:
                    raise
                if self._cache:
                    self._cache.drop(self._chunk_name(self._chunk_of(number)))
        if "label" in columns:
            columns["label"] = self._classes[shard_number][columns["label"]]
        return columns

    def batches(self, size: int) -> Iterator[Columns]:
        """All samples in stored order, `size` at a time; fewer where a frame ends."""
        with ThreadPoolExecutor(THREADS) as pool:
            ahead: deque[Future[Columns]] = deque()
            for number in range(len(self.samples_per_frame) + THREADS):
                if number < len(self.samples_per_frame):
                    self.prefetch([number])
                    ahead.append(pool.submit(self.frame, number))
                if number >= THREADS and ahead:
                    columns = ahead.popleft().result()
                    for start in range(0, num_rows(columns), size):
                        yield cut(columns, start, start + size)

    def prefetch(self, frames: Sequence[int]) -> None:
        """Begin to fetch what these frames need; returns at once."""
        if self._cache is None:
            return
        for number in frames:
            chunk = self._chunk_of(number)
            fetching = self._fetching.get(chunk)
            is_due = fetching is None or fetching.done()  # done, and perhaps dropped again since
            if is_due and not self._cache.holds(self._chunk_name(chunk)):
                self._pool = self._pool or ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
                self._fetching[chunk] = self._pool.submit(self._read_chunk, chunk, 0, 0)

    def close(self) -> None:
        """Give up what is being fetched ahead, which else would be waited for at the end."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
            self._fetching.clear()

    def _compressed(self, number: int, shard: Shard) -> bytes:
        start, end = int(self._starts[number]), int(self._ends[number])
        if self._cache is None:
            return self._storage.read(shard.file.path, start, end)  # local: decoding proves it
        chunk = self._chunk_of(number)
        if (fetching := self._fetching.pop(chunk, None)) is not None:
            wait([fetching])  # an error is met again, and raised, by the read below
        first = int(self._starts[self.chunk_starts[chunk]])
        return self._read_chunk(chunk, start - first, end - first)

    def _read_chunk(self, chunk: int, start: int, end: int) -> bytes:
        """Bytes [start, end) of a chunk, from the cache or through it from the store."""
        assert self._cache is not None, "chunks are for remote stores"
        frame = int(self.chunk_starts[chunk])
        shard = self._shards[int(np.searchsorted(self._shard_starts, frame, side="right")) - 1]
        first = int(self._starts[frame])

        def fetch() -> bytes:
            last = first + int(self._chunk_bytes[chunk])
            return self._storage.read(shard.file.path, first, last, prove=prove)

        def prove(data: bytes) -> None:
            """Each frame ends in its checksum: nothing is cut, shifted or of another object."""
            for number in range(frame, self._chunk_stop(chunk)):
                end = int(self._ends[number]) - first
                if codec.checksum(data[end - 4 : end]) != self._checksums[number]:
                    raise CorruptError(
                        f"read the frame at byte {self._starts[number]} of {shard.file.path}",
                        "it does not end in the checksum that the manifest names",
                        f"The shard is damaged. {HEAL}",
                    )

        return self._cache.read(self._chunk_name(chunk), start, end, fetch)

    def _chunk_stop(self, chunk: int) -> int:
        """The frame after the last of a chunk."""
        is_last = chunk + 1 == len(self.chunk_starts)
        return len(self._ends) if is_last else int(self.chunk_starts[chunk + 1])

    def _chunk_of(self, number: int) -> int:
        return int(np.searchsorted(self.chunk_starts, number, side="right")) - 1

    def _chunk_name(self, chunk: int) -> str:
        """Of the shard's digest and the chunk's place in it: the same for whoever needs it."""
        frame = int(self.chunk_starts[chunk])
        shard = self._shards[int(np.searchsorted(self._shard_starts, frame, side="right")) - 1]
        return f"{shard.file.sha256[:32]}-{self._starts[frame]}-{self._chunk_bytes[chunk]}"


def _refuse_outside(path: str, manifest: Manifest) -> None:
    if not path.startswith(f"{manifest.pipeline}/") or ".." in path.split("/"):
        raise CorruptError(
            f"read the shards that {manifest.path} names",
            f"it names {path}, which is not below {manifest.pipeline}/",
            "Delete that manifest and materialize the shards again",
        )
