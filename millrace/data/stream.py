"""Stream samples out of shards as batches: fetched ahead, decoded in threads, same on any rank."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from millrace.data.columns import Columns, Field
from millrace.data.order import GROUP_FRAMES, Order
from millrace.data.shard import Shard, ShardReader
from millrace.errors import SpecError
from millrace.manifest import Manifest
from millrace.storage import Storage

THREADS = 2
BATCHES_AHEAD = 4
CACHE_BYTES = 256 * 2**20


class Samples:
    """The samples of one split: its frames, decoded and proven as they are read."""

    def __init__(self, storage: Storage, manifest: Manifest, split: str) -> None:
        facts = manifest.facts
        fields = {
            name: Field(dtype, tuple(shape)) for name, (dtype, shape) in facts["fields"].items()
        }
        numbers = {name: number for number, name in enumerate(facts["classes"])}
        self._reader = ShardReader(storage, fields)
        self._frames: list[tuple[Shard, int, np.ndarray]] = []
        for value in facts["shards"]:
            shard = Shard.from_dict(value)
            if shard.split == split:
                classes = np.array([numbers[name] for name in shard.classes], np.int64)
                self._frames += [(shard, number, classes) for number in range(len(shard.frames))]
        self.samples_per_frame = tuple(
            shard.frames[number].num_samples for shard, number, _ in self._frames
        )
        self.largest_frame_bytes = max(
            (shard.frames[number].raw_bytes for shard, number, _ in self._frames), default=0
        )

    def __len__(self) -> int:
        return sum(self.samples_per_frame)

    @property
    def sample_bytes(self) -> int:
        """Raw bytes of a sample."""
        return self.largest_frame_bytes // max(1, *self.samples_per_frame)

    def frame(self, number: int) -> Columns:
        """Columns of a frame, labels as numbers into the data set's classes."""
        shard, index, classes = self._frames[number]
        columns = self._reader.read(shard, index)
        if "label" in columns:
            columns["label"] = classes[columns["label"]]
        return columns

    def batches(self, size: int) -> Iterator[Columns]:
        """All samples in stored order, `size` at a time; the last batch may be smaller."""
        with ThreadPoolExecutor(THREADS) as pool:
            ahead: deque[Future[Columns]] = deque()
            for number in range(len(self._frames) + THREADS):
                if number < len(self._frames):
                    ahead.append(pool.submit(self.frame, number))
                if number >= THREADS and ahead:
                    columns = ahead.popleft().result()
                    for start in range(0, len(columns["record"]), size):
                        yield {name: part[start : start + size] for name, part in columns.items()}


class Stream:
    """Shuffled batches of one split without end; the place in it is the step.

    Step k holds the same samples on any world size: rank r of n gets the r-th n-th of them.
    """

    def __init__(
        self, samples: Samples, batch: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if len(samples) < batch:
            raise SpecError(
                f"stream batches of {batch} samples",
                f"the split has only {len(samples)}",
                "Lower `train.batch` or add records",
            )
        assert batch % world_size == 0, f"{world_size} ranks cannot share a batch of {batch}"
        self._order = Order(samples.samples_per_frame, seed)
        self._batch, self._rank, self._share = batch, rank, batch // world_size
        self.steps_per_epoch = len(samples) // batch
        # Two groups of frames are in use at once where one group passes into the next.
        budget = max(CACHE_BYTES, 2 * GROUP_FRAMES * samples.largest_frame_bytes)
        self._cache = _FrameCache(samples.frame, budget)
        self._ahead: deque[Future[Columns]] = deque()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="stream")
        self._next_step = 0
        self.seek(0)

    def seek(self, step: int) -> None:
        """Continue with the batch of this step."""
        self._next_step = step
        self._ahead.clear()
        for number in range(step, step + BATCHES_AHEAD):
            self._ahead.append(self._pool.submit(self.batch_at, number))

    def __next__(self) -> Columns:
        batch = self._ahead[0].result()  # an error stays in place: asked again, it comes again
        self._ahead.popleft()
        self._ahead.append(self._pool.submit(self.batch_at, self._next_step + BATCHES_AHEAD))
        self._next_step += 1
        return batch

    def __iter__(self) -> Iterator[Columns]:
        return self

    def close(self) -> None:
        """Stop fetching ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batch_at(self, step: int) -> Columns:
        """This rank's share of a step's batch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self._batch + self._rank * self._share
        frames, indices = self._order.locate(epoch, start, start + self._share)
        batch: Columns = {}
        for frame in np.unique(frames):
            here = frames == frame
            for name, column in self._cache.get(int(frame)).items():
                if name not in batch:
                    batch[name] = np.empty((self._share, *column.shape[1:]), column.dtype)
                batch[name][here] = column[indices[here]]
        return batch


class _FrameCache:
    """Decoded frames, the least recently used dropped beyond a number of bytes."""

    def __init__(self, read: Callable[[int], Columns], max_bytes: int) -> None:
        self._read, self._max_bytes, self._num_bytes = read, max_bytes, 0
        self._frames: OrderedDict[int, Columns] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int) -> Columns:
        with self._lock:
            if number in self._frames:
                self._frames.move_to_end(number)
                return self._frames[number]
        columns = self._read(number)  # two threads may read the same frame: waste, not error
        with self._lock:
            if number not in self._frames:
                self._frames[number] = columns
                self._num_bytes += _size(columns)
            while self._num_bytes > self._max_bytes and len(self._frames) > 1:
                self._num_bytes -= _size(self._frames.popitem(last=False)[1])
        return columns


def _size(columns: Columns) -> int:
    return sum(column.nbytes for column in columns.values())
