import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.data.order import (
    CHUNK_BYTES,
    Epoch,
    Layout,
    Pattern,
    choose,
    chunk_starts,
    num_lanes,
    permute,
    shuffled,
)
from millrace.errors import SpecError

counts = st.lists(st.integers(1, 30), min_size=1, max_size=60)
seeds = st.integers(0, 2**32)
epochs = st.integers(0, 50)
lanes = st.sampled_from([1, 2, 4, 8])


def layout(samples_per_frame: list[int], per_chunk: int = 3, frame_bytes: float = 8e6) -> Layout:
    starts = np.arange(0, len(samples_per_frame), per_chunk)
    return Layout(np.array(samples_per_frame, np.int64), starts, frame_bytes)


def lane_places(epoch: Epoch, lane: int, start: int = 0) -> list[tuple[int, int]]:
    """(frame, index) of a lane's samples in their order, from the group that holds `start` on."""
    found = []
    for _, group in epoch.groups(lane, start):
        laid = [(frame, i) for frame, low, high in group.parts for i in range(low, high)]
        found += [laid[place] for place in group.place.tolist()]
    return found


@given(st.integers(1, 5000), st.integers(0, 2**63), st.integers(0, 9))
def test_a_keyed_permutation_visits_each_place_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(permute(np.arange(size), size, seed, epoch).tolist()) == list(range(size))


@given(st.integers(1, 10**12), st.data())
def test_a_place_is_permuted_without_its_neighbours(size: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9)))

    together = permute(places, size, 7)

    assert [int(permute(places[i : i + 1], size, 7)[0]) for i in range(len(places))] == (
        together.tolist()
    )
    assert together.min() >= 0
    assert together.max() < size


def test_a_keyed_permutation_looks_random() -> None:
    # Of 2,000 places 1 stays where it was on average, and the two sequences do not correlate.
    size = 2000
    found = np.stack([permute(np.arange(size), size, key) for key in range(200)])

    assert 0.7 < (found == np.arange(size)).sum() / 200 < 1.3
    assert abs(np.corrcoef(found.ravel(), np.tile(np.arange(size), 200))[0, 1]) < 0.01


@given(counts, seeds, epochs, lanes)
def test_lanes_share_out_an_epoch_and_visit_no_sample_twice(
    per_frame: list[int], seed: int, epoch: int, num: int
) -> None:
    order = Epoch(layout(per_frame), seed, epoch, num)

    visited = [place for lane in range(num) for place in lane_places(order, lane)]

    whole = {(frame, i) for frame, count in enumerate(per_frame) for i in range(count)}
    assert len(set(visited)) == len(visited) == sum(per_frame) // num * num
    assert set(visited) <= whole


@given(counts, seeds, lanes, st.data())
def test_a_lane_entered_anywhere_goes_on_as_the_whole_lane_does(
    per_frame: list[int], seed: int, num: int, data: st.DataObject
) -> None:
    order = Epoch(layout(per_frame), seed, 0, num)
    lane = data.draw(st.integers(0, num - 1))
    whole = lane_places(order, lane)
    start = data.draw(st.integers(0, max(0, len(whole) - 1)))

    entered = lane_places(order, lane, start)
    first = next((at for at, _ in order.groups(lane, start)), 0)

    assert first <= start
    assert entered == whole[first:]


@given(counts, seeds, lanes)
def test_groups_follow_each_other_without_a_gap(per_frame: list[int], seed: int, num: int) -> None:
    order = Epoch(layout(per_frame), seed, 3, num)

    for lane in range(num):
        at = 0
        for start, group in order.groups(lane):
            assert start == at
            assert len(group.place) == sum(high - low for _, low, high in group.parts)
            at += len(group.place)


def test_epochs_seeds_and_lanes_differ() -> None:
    told = layout([10] * 40)
    orders = [
        tuple(lane_places(Epoch(told, seed, epoch, 1), 0))
        for seed in range(3)
        for epoch in range(3)
    ]

    assert len(set(orders)) == 9


def test_samples_of_a_chunk_are_spread_over_a_window_but_not_beyond() -> None:
    # 64 MiB of 1 MiB frames are mixed: a lane of 8 has windows of 8 chunks, groups of 8 frames.
    order = Epoch(layout([16] * 4096, per_chunk=4, frame_bytes=2.0**20), 1, 0, 8)

    groups = [group for _, group in order.groups(0)]

    assert [len(group.parts) for group in groups[:6]] == [4, 4, 8, 8, 8, 8]
    window = [{frame // 4 for frame, _, _ in group.parts} for group in groups[2:6]]
    assert len(set.union(*window)) == 8
    assert all(len(chunks) > 2 for chunks in window)


def test_the_order_stays_what_it_was() -> None:
    # A run resumes in the order it began with, whatever version of ours resumes it.
    order = Epoch(layout([3, 2, 4, 5], per_chunk=2), 7, 1, 2)

    assert lane_places(order, 0) == GOLDEN[0]
    assert lane_places(order, 1) == GOLDEN[1]
    assert permute(np.arange(8), 1000, 3, 4).tolist() == GOLDEN_PERMUTED


GOLDEN = [
    [(0, 2), (2, 0), (1, 1), (1, 0), (0, 0), (0, 1), (2, 1)],
    [(2, 2), (3, 1), (3, 3), (3, 2), (3, 0), (3, 4), (2, 3)],
]
GOLDEN_PERMUTED = [735, 931, 326, 578, 35, 878, 786, 935]


@given(st.lists(st.integers(1, 3 * CHUNK_BYTES), min_size=1, max_size=40), st.data())
def test_chunks_are_runs_of_frames_of_one_shard(sizes: list[int], data: st.DataObject) -> None:
    others = data.draw(st.sets(st.integers(1, max(1, len(sizes) - 1)), max_size=4))
    breaks = np.array(sorted({0, *(place for place in others if place < len(sizes))}))

    starts = chunk_starts(np.array(sizes, np.int64), breaks).tolist()

    assert starts[0] == 0
    assert set(breaks.tolist()) <= set(starts)
    for start, end in zip(starts, [*starts[1:], len(sizes)], strict=True):
        assert sum(sizes[start : end - 1]) <= CHUNK_BYTES


@pytest.mark.parametrize(
    ("batch", "chunks", "expected"),
    [(256, 99, 8), (4, 99, 4), (12, 99, 4), (7, 99, 1), (64, 17, 2), (64, 1, 1)],
)
def test_a_batch_is_taken_from_lanes_that_divide_it(batch: int, chunks: int, expected: int) -> None:
    assert num_lanes(batch, chunks) == expected


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), seeds, st.integers(0, 10**9))
def test_a_mixture_serves_each_source_in_its_share(
    weights: list[float], seed: int, place: int
) -> None:
    pattern = Pattern(weights, seed)

    served = [pattern.served(source, place) for source in range(len(weights))]
    after = [pattern.served(source, place + 1) for source in range(len(weights))]

    assert sum(served) == place
    assert max(b - a for a, b in zip(served, after, strict=True)) == 1
    for weight, count in zip(weights, served, strict=True):
        share = weight / sum(weights)
        assert abs(count - share * place) <= place / 1024 + 1024


def test_a_share_too_small_to_be_served_is_refused() -> None:
    with pytest.raises(SpecError, match=r"0.0001 is less than one of 1024 samples"):
        Pattern([0.9999, 0.0001], 0)


@given(counts, st.integers(1, 200), seeds)
def test_a_choice_holds_as_many_different_samples_as_asked(
    per_frame: list[int], number: int, seed: int
) -> None:
    number = min(number, sum(per_frame))

    frames, indices = choose(np.array(per_frame, np.int64), number, seed)

    assert len(set(zip(frames.tolist(), indices.tolist(), strict=True))) == number
    assert all(index < per_frame[frame] for frame, index in zip(frames, indices, strict=True))


@given(st.integers(1, 300), seeds)
def test_a_shuffle_is_a_permutation(size: int, seed: int) -> None:
    assert sorted(shuffled(size, seed).tolist()) == list(range(size))
