from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from millrace.data import codec
from millrace.data.frontier import LEVELS, PROBE_BYTES, Point, measure, measure_link
from millrace.errors import StorageError
from millrace.storage import FsspecStorage


def frames_of(size: int, count: int) -> list[bytes]:
    """Frames of words of a few letters: compressible, and no two alike."""
    rng = np.random.default_rng(size)
    return [rng.integers(97, 105, size, np.uint8).tobytes() for _ in range(count)]


def always(_point: Point, _points: Sequence[Point]) -> bool:
    return True


def test_every_level_and_frame_size_is_measured_as_shards_are_packed() -> None:
    sample = {2**14: frames_of(2**14, 4), 2**16: frames_of(2**16, 1)}

    points = measure(sample, LEVELS, always)

    assert [(point.level, point.frame_bytes) for point in points] == [
        (level, size) for level in LEVELS for size in sample
    ]
    for point in points:
        frames = sample[point.frame_bytes]
        stored = [codec.compress(frame, point.level) for frame in frames]
        assert point.ratio == pytest.approx(sum(map(len, frames)) / sum(map(len, stored)))
        assert point.encode_bytes_per_second > 0
        assert point.decode_bytes_per_second > 0


def test_no_higher_level_is_tried_once_none_can_win() -> None:
    def up_to_six(point: Point, _points: Sequence[Point]) -> bool:
        return point.level < 6

    points = measure({2**14: frames_of(2**14, 2)}, LEVELS, up_to_six)

    assert [point.level for point in points] == [1, 3, 6]


def test_a_level_goes_on_while_one_frame_size_can_win() -> None:
    sample = {2**14: frames_of(2**14, 2), 2**15: frames_of(2**15, 1)}

    points = measure(sample, (3, 6), lambda point, _points: point.frame_bytes == 2**15)

    assert [point.level for point in points] == [3, 3, 6, 6]


def test_a_level_too_slow_for_the_sample_gets_its_ratio_from_what_it_saw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = {2**14: frames_of(2**14, 8)}
    whole = measure(sample, (19,), always)[0]
    monkeypatch.setattr("millrace.data.frontier.POINT_SECONDS", 1e-9)

    seen = measure(sample, (19,), always)[0]

    assert seen.ratio == pytest.approx(whole.ratio, rel=0.01)
    assert seen.ratio != whole.ratio


def test_the_grid_ends_when_its_time_is_over_but_not_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("millrace.data.frontier.GRID_SECONDS", 0.0)

    points = measure({2**14: frames_of(2**14, 2)}, LEVELS, always)

    assert [point.level for point in points] == [1, 3]


def test_the_link_is_measured_and_nothing_stays_on_the_store(storage: FsspecStorage) -> None:
    storage.write("p/kept", b"1")

    link = measure_link(storage, "p/shards/layout")

    assert storage.list("") == {"p/kept": 1}
    assert 0 < link.request_seconds < 10
    assert PROBE_BYTES / 1000 < link.read_bytes_per_second < 1e12
    assert PROBE_BYTES / 1000 < link.write_bytes_per_second < 1e12


class Refusing(FsspecStorage):
    """A store that takes everything and gives nothing back."""

    def read(self, *_args: Any, **_options: Any) -> bytes:
        raise StorageError("read", "refused", "none")


def test_a_probe_that_cannot_be_read_back_is_deleted_all_the_same(store_url: str) -> None:
    storage = Refusing(store_url)

    with pytest.raises(StorageError, match="refused"):
        measure_link(storage, "p")

    assert storage.list("") == {}
