"""Measure what zstd levels and frame sizes take on a sample of the data, and the link to the store.

sample as raw frames, for each frame size --> level by level upwards, while one may still win
                                          --> ratio, encode and decode speed: a point each
"""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import zstandard

from millrace.storage import Storage

LEVELS = (1, 3, 6, 9, 12, 15, 19)
FRAME_BYTES = (2**18, 2**20, 2**22)
REFERENCE_LEVEL = 3
POINT_SECONDS = 0.15  # a slow level sees only as many frames as fit
GRID_SECONDS = 5.0
PASSES = 3
PROBE_BYTES = 4 * 2**20
IN_FLIGHT = 2  # reads at once, as many as the stream has threads


@dataclass(frozen=True)
class Point:
    """What a zstd level and a frame size took; speeds are raw bytes per CPU second of one core."""

    level: int
    frame_bytes: int
    ratio: float
    """Raw bytes to stored bytes."""
    encode_bytes_per_second: float
    decode_bytes_per_second: float


@dataclass(frozen=True)
class Link:
    """What lies between the store and this machine."""

    read_bytes_per_second: float
    write_bytes_per_second: float
    request_seconds: float
    """Of a read so small that its bytes do not count."""


def measure(
    sample: Mapping[int, Sequence[bytes]],
    levels: Iterable[int],
    can_win: Callable[[Point, Sequence[Point]], bool],
) -> list[Point]:
    """A point for each frame size and level, upwards until no frame size of a level can win.

    CPU time counts, not wall time: other processes must not sway the choice. A level too slow for
    the whole sample sees its first frames; its ratio there, relative to the reference level's on
    the same frames, is then carried over to the whole sample.

    Args:
        sample: Frame size to raw frames, all of them cut from the same data.
        levels: zstd levels.
        can_win: Whether a point, or one of a higher level, may still be the choice among all
            points so far. Nobody is asked below the reference level.
    """
    start = time.thread_time()
    reference = {
        size: [len(frame) for frame in _compressed(frames, REFERENCE_LEVEL)[0]]
        for size, frames in sample.items()
    }
    points: list[Point] = []
    for level in sorted(levels):
        if level > REFERENCE_LEVEL and points and time.thread_time() - start > GRID_SECONDS:
            break
        found = [
            _measure_point(level, size, frames, reference[size]) for size, frames in sample.items()
        ]
        points += found
        if level >= REFERENCE_LEVEL and not any(can_win(point, points) for point in found):
            break
    return points


def _measure_point(
    level: int, frame_bytes: int, frames: Sequence[bytes], reference: Sequence[int]
) -> Point:
    compressed, encode_seconds = _compressed(frames, level, POINT_SECONDS)
    seen = frames[: len(compressed)]
    decode_seconds = min(_decode_seconds(compressed, seen) for _ in range(PASSES))
    relative = sum(map(len, compressed)) / sum(reference[: len(compressed)])
    seen_bytes = sum(map(len, seen))
    return Point(
        level,
        frame_bytes,
        ratio=sum(map(len, frames)) / (sum(reference) * relative),
        encode_bytes_per_second=seen_bytes / encode_seconds,
        decode_bytes_per_second=seen_bytes / decode_seconds,
    )


def _compressed(
    frames: Sequence[bytes], level: int, most_seconds: float = 0.0
) -> tuple[list[bytes], float]:
    """The first frames compressed, as many as fit into the time (0: all), and the CPU seconds.

    Where there is time for several passes, the fastest one counts.
    """
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    start = time.thread_time()
    compressed: list[bytes] = []
    for frame in frames:
        compressed.append(compressor.compress(frame))
        if most_seconds and time.thread_time() - start > most_seconds:
            break
    best = time.thread_time() - start
    for _ in range(1, PASSES if best * PASSES < most_seconds else 1):
        again = time.thread_time()
        for frame in frames:
            compressor.compress(frame)
        best = min(best, time.thread_time() - again)
    return compressed, max(best, _TICK)


def _decode_seconds(compressed: Sequence[bytes], frames: Sequence[bytes]) -> float:
    decompressor = zstandard.ZstdDecompressor()
    start = time.thread_time()
    for data, frame in zip(compressed, frames, strict=True):
        decompressor.decompress(data, max_output_size=len(frame))
    return max(time.thread_time() - start, _TICK)


_TICK = 1e-7  # no clock is finer; an empty sample must not divide by zero


def measure_link(storage: Storage, folder: str) -> Link:
    """Write a probe object below `folder`, read it back in ranges as the stream does, delete it."""
    path = f"{folder}/probe-{uuid.uuid4().hex}"
    data = np.random.default_rng(0).bytes(PROBE_BYTES)  # incompressible, whatever lies between
    part = PROBE_BYTES // IN_FLIGHT
    try:
        write_seconds = _seconds(lambda: storage.write(path, data))
        request_seconds = min(_seconds(lambda: storage.read(path, 0, 1)) for _ in range(PASSES))
        with ThreadPoolExecutor(IN_FLIGHT) as pool:

            def read() -> None:
                starts = range(0, PROBE_BYTES, part)
                list(pool.map(lambda start: storage.read(path, start, start + part), starts))

            read_seconds = min(_seconds(read) for _ in range(PASSES))
    finally:
        storage.delete(path)
    # Asking takes its time too, but never all of it.
    transfer_seconds = max(read_seconds - request_seconds, read_seconds / 10)
    return Link(PROBE_BYTES / transfer_seconds, PROBE_BYTES / write_seconds, request_seconds)


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return max(time.perf_counter() - start, _TICK)
