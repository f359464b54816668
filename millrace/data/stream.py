"""Stream samples as shuffled batches: fetched ahead, decoded in threads, the same on any rank.

    lane: groups of frames --> fetched ahead --> decoded in threads --> samples laid out in a buffer
    step --> how many samples from which lane --> gathered from the buffers --> a rank's share

Nothing here decides an order: `order.py` does. A stream's state is its step.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from millrace.data.columns import Array, Columns, Field, Ragged, join
from millrace.data.images import decode_images
from millrace.data.order import Epoch, Group, Indices, Layout, Pattern, num_lanes
from millrace.errors import SpecError

THREADS = 2
BATCHES_AHEAD = 2
GROUPS_AHEAD = 2
"""Groups of a lane that are decoded or being decoded: one is read from while the next is made."""
GROUPS_FETCHED = 6
"""Groups of a lane whose frames are fetched, or being fetched, before they are decoded."""


class Frames(Protocol):
    """A data set that can be streamed, frame by frame. Arrays are int64, an entry a frame."""

    fields: Mapping[str, Field]
    samples_per_frame: Indices
    frame_bytes: Indices
    """Decoded bytes of each frame."""
    chunk_starts: Indices
    """First frame of each run of frames that is best fetched together."""
    classes: Sequence[str]
    """What the numbers of a `label` column mean; empty without one."""

    def frame(self, number: int) -> Columns:
        """The columns of a frame; called from several threads."""

    def prefetch(self, frames: Sequence[int]) -> None:
        """These frames will be asked for soon; returns at once."""


@dataclass(frozen=True)
class Piece:
    """Samples [start, stop) of a lane of a source, counted from the first epoch on."""

    source: int
    lane: int
    start: int
    stop: int


class Stream:
    """Shuffled batches without end; the place in it is the step.

    Step k holds the same samples on any world size: rank r of n gets the r-th n-th of them. Samples
    that do not fill a last batch are left out of an epoch, others each time.

    Args:
        sources: One data set, or several with the weight of each: the share of its samples in the
            stream. With several there is no common epoch; each begins anew when it is through.
        batch: Samples of a step over all ranks; a multiple of the world size.
        seed: Of the order.
        rank: This process among the ranks.
        world_size: How many there are.
        threads: That decode.

    Raises:
        SpecError: A source holds less than a batch, or a weight is not positive.
    """

    def __init__(
        self,
        sources: Frames | Sequence[tuple[Frames, float]],
        batch: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = THREADS,
    ) -> None:
        assert batch % world_size == 0, f"{world_size} ranks cannot share a batch of {batch}"
        weighted = sources if isinstance(sources, Sequence) else [(sources, 1.0)]
        _refuse_unusable(weighted, batch)
        self._batch, self._rank, self._share = batch, rank, batch // world_size
        self._pattern = Pattern([weight for _, weight in weighted], seed)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._sources = [
            _Source(frames, batch, seed + number, self._pool, is_alone=len(weighted) == 1)
            for number, (frames, _) in enumerate(weighted)
        ]
        self.steps_per_epoch = sum(int(s.samples_per_frame.sum()) for s, _ in weighted) // batch
        self._fields = weighted[0][0].fields
        self._assembler = ThreadPoolExecutor(1, thread_name_prefix="assemble")
        self._ahead: deque[Future[Columns]] = deque()
        self._next_step, self._stride, self._is_closed = 0, 1, False
        self.seek(0)

    def seek(self, step: int, stride: int = 1) -> None:
        """Go to a step, forward or back; then every `stride`-th one is served."""
        assert step >= 0, f"there is no step {step}"
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._next_step, self._stride = step, stride
        self._ahead.extend(self._submit(step + i * stride) for i in range(BATCHES_AHEAD))

    def __next__(self) -> Columns:
        """This rank's share of the next step: columns of batch / world_size samples.

        An error stays in place: asked again, it comes again, until `seek` begins anew.
        """
        if self._is_closed:
            raise RuntimeError("the stream was closed")
        batch = self._ahead[0].result()
        self._ahead.popleft()
        self._ahead.append(self._submit(self._next_step + BATCHES_AHEAD * self._stride))
        self._next_step += self._stride
        return batch

    def __iter__(self) -> Iterator[Columns]:
        return self

    def close(self) -> None:
        """Stop reading ahead; the stream gives no more batches."""
        self._is_closed = True
        self._assembler.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, step: int) -> Future[Columns]:
        return self._assembler.submit(self._assemble, step)

    def _assemble(self, step: int) -> Columns:
        pieces = self._pieces(step)
        try:
            batch = _Batch(self._fields, self._share)
            for piece in pieces:  # all lanes' first groups before any lane's second
                self._sources[piece.source].lanes[piece.lane].prepare(piece.start)
            for piece in pieces:
                self._sources[piece.source].lanes[piece.lane].take(piece.start, piece.stop, batch)
            return self._decode_images(batch.columns())
        except BaseException:
            for source in self._sources:
                source.reset()
            raise

    def _pieces(self, step: int) -> list[Piece]:
        """What this rank serves of a step: lanes lie one after the other, ranks cut them evenly."""
        pieces, at = [], 0
        low, high = self._rank * self._share, (self._rank + 1) * self._share
        for number, source in enumerate(self._sources):
            first = self._pattern.served(number, step * self._batch)
            end = self._pattern.served(number, (step + 1) * self._batch)
            for lane in range(len(source.lanes)):
                # Sample i of a source is sample i // lanes of lane i % lanes.
                start = -((lane - first) // len(source.lanes))
                stop = -((lane - end) // len(source.lanes))
                begin, finish = max(low, at), min(high, at + stop - start)
                if begin < finish:
                    pieces.append(Piece(number, lane, start + begin - at, start + finish - at))
                at += stop - start
        return pieces

    def _decode_images(self, columns: Columns) -> Columns:
        for name, told in self._fields.items():
            if told.dtype == "image":
                columns[name] = decode_images(columns[name], told.shape, self._pool)
        return columns


def _refuse_unusable(sources: Sequence[tuple[Frames, float]], batch: int) -> None:
    for frames, weight in sources:
        size = int(frames.samples_per_frame.sum())
        if size < (batch if len(sources) == 1 else 1):
            raise SpecError(
                f"stream batches of {batch} samples",
                f"the split has only {size}",
                "Lower `train.batch` or add records",
            )
        if not 0 < weight < math.inf:
            raise SpecError("mix several sources", f"a weight is {weight}", "Set it above 0")
        if tuple(frames.classes) != tuple(sources[0][0].classes):
            raise SpecError(
                "mix several sources",
                f"their labels mean different classes: {', '.join(frames.classes) or 'none'} and "
                f"{', '.join(sources[0][0].classes) or 'none'}",
                "Pack them in one pipeline: `source.url` takes several",
            )
        if frames.fields != sources[0][0].fields:
            raise SpecError(
                "mix several sources",
                f"their fields differ: {frames.fields} and {sources[0][0].fields}",
                "Pack them with the same task",
            )


class _Source:
    """A data set's lanes, epoch after epoch."""

    def __init__(
        self,
        frames: Frames,
        batch: int,
        seed: int,
        pool: ThreadPoolExecutor,
        *,
        is_alone: bool,
    ) -> None:
        mean_bytes = float(frames.frame_bytes.mean())
        self._layout = Layout(frames.samples_per_frame, frames.chunk_starts, mean_bytes)
        self._seed, self._num_lanes = seed, num_lanes(batch, len(frames.chunk_starts))
        # Alone, an epoch is a whole number of batches; in a mixture batches know no epochs.
        per_lane = self._layout.num_samples // self._num_lanes
        per_step = batch // self._num_lanes
        self.lane_samples = per_lane // per_step * per_step if is_alone else per_lane
        self._epochs: dict[int, Epoch] = {}
        self.lanes = [_Lane(self, frames, lane, pool) for lane in range(self._num_lanes)]

    def epoch(self, number: int) -> Epoch:
        """The order of an epoch; two are kept, as lanes pass into the next one by one."""
        if number not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[number] = Epoch(self._layout, self._seed, number, self._num_lanes)
        return self._epochs[number]

    def reset(self) -> None:
        """Drop what is decoded ahead."""
        for lane in self.lanes:
            lane.reset()


@dataclass
class _Loading:
    """A group on its way into a buffer."""

    start: int
    """Number of its first sample in the lane, counted from the first epoch on."""
    place: Indices
    """The i-th sample of the group is the place[i]-th of the buffer."""
    parts: list["Future[Columns]"]
    buffer: dict[str, Array]
    ragged: dict[str, Ragged] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        """Number of the sample after its last."""
        return self.start + len(self.place)

    def wait(self) -> None:
        """Until all of it is decoded; raises what a decoding thread raised."""
        if self.parts:
            found = [part.result() for part in self.parts]
            if found[0]:
                self.ragged = join(found)
            self.parts = []


class _Lane:
    """One lane's samples in order: groups decoded ahead into buffers that are used again."""

    def __init__(
        self, source: _Source, frames: Frames, number: int, pool: ThreadPoolExecutor
    ) -> None:
        self._source, self._frames, self._number, self._pool = source, frames, number, pool
        self._upcoming: Iterator[tuple[int, Group]] = iter(())
        self._fetched: deque[tuple[int, Group]] = deque()
        self._loading: deque[_Loading] = deque()
        self._buffers: list[dict[str, Array]] = [{} for _ in range(GROUPS_AHEAD)]

    def prepare(self, start: int) -> None:
        """Begin to decode the group that holds sample `start`, if that is not done."""
        while self._loading and self._loading[0].stop <= start:
            self._buffers.append(self._drop_first().buffer)
        if not self._loading or start < self._loading[0].start:
            self._restart(start)
            self._load_next()

    def take(self, start: int, stop: int, batch: "_Batch") -> None:
        """Copy samples [start, stop) into the batch."""
        while start < stop:
            self.prepare(start)
            group = self._loading[0]
            while len(self._loading) < GROUPS_AHEAD:
                self._load_next()
            group.wait()
            end = min(stop, group.stop)
            batch.add(group, group.place[start - group.start : end - group.start])
            start = end

    def reset(self) -> None:
        """Forget all groups; the next one asked for is decoded anew."""
        while self._loading:
            self._buffers.append(self._drop_first().buffer)

    def _drop_first(self) -> _Loading:
        """Give up the first group once no thread writes to its buffer any more."""
        group = self._loading.popleft()
        for part in group.parts:
            part.cancel()
        for part in group.parts:
            if not part.cancelled():
                part.exception()
        return group

    def _restart(self, start: int) -> None:
        self.reset()
        self._fetched.clear()
        self._upcoming = self._groups(start)

    def _groups(self, start: int) -> Iterator[tuple[int, Group]]:
        size = self._source.lane_samples
        epoch, place = divmod(start, size)
        while True:
            for at, group in self._source.epoch(epoch).groups(self._number, place):
                if at < size:
                    whole = group.place[: size - at]  # what does not fill a batch is left out
                    yield epoch * size + at, Group(group.parts, whole)
            epoch, place = epoch + 1, 0

    def _load_next(self) -> None:
        while len(self._fetched) < GROUPS_FETCHED:
            start, group = next(self._upcoming)
            self._frames.prefetch([frame for frame, _, _ in group.parts])
            self._fetched.append((start, group))
        start, group = self._fetched.popleft()
        buffer, at, parts = self._buffers.pop(), 0, []
        size = sum(high - low for _, low, high in group.parts)
        for name, told in self._frames.fields.items():
            if not told.is_ragged and len(buffer.get(name, ())) < size:
                buffer[name] = np.empty((size, *told.shape), told.dtype)
        for frame, low, high in group.parts:
            parts.append(self._pool.submit(self._load, frame, low, high, buffer, at))
            at += high - low
        self._loading.append(_Loading(start, group.place, parts, buffer))

    def _load(self, frame: int, low: int, high: int, buffer: dict[str, Array], at: int) -> Columns:
        """Decode a frame; arrays go into the buffer from sample `at` on, ragged columns back."""
        columns = self._frames.frame(frame)
        for name, held in buffer.items():
            held[at : at + high - low] = columns[name][low:high]
        return {name: columns[name][low:high] for name in columns.keys() - buffer.keys()}


class _Batch:
    """A batch while samples are added to it."""

    def __init__(self, fields: Mapping[str, Field], size: int) -> None:
        self._arrays = {
            name: np.empty((size, *told.shape), told.dtype)
            for name, told in fields.items()
            if not told.is_ragged
        }
        self._ragged: list[Columns] = []
        self._names, self._size, self._filled = list(fields), size, 0

    def add(self, group: _Loading, places: Indices) -> None:
        """Add the group's samples at `places` of its buffer."""
        end = self._filled + len(places)
        for name, array in self._arrays.items():
            # The places are our own: `clip` spares numpy a second copy that checks them.
            np.take(group.buffer[name], places, axis=0, out=array[self._filled : end], mode="clip")
        if group.ragged:
            self._ragged.append({n: column.take(places) for n, column in group.ragged.items()})
        self._filled = end

    def columns(self) -> Columns:
        """The full batch, in the order of its fields."""
        assert self._filled == self._size, f"{self._filled} samples in a batch of {self._size}"
        found: Columns = {**self._arrays, **(join(self._ragged) if self._ragged else {})}
        return {name: found[name] for name in self._names}
