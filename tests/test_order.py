import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.data.order import GROUP_FRAMES, Order

frames = st.lists(st.integers(1, 30), min_size=1, max_size=60).map(tuple)
seeds = st.integers(0, 2**32)
epochs = st.integers(0, 50)
groups = st.integers(1, 20)


def places(order: Order, epoch: int, start: int, stop: int) -> list[tuple[int, int]]:
    found, indices = order.locate(epoch, start, stop)
    return list(zip(found.tolist(), indices.tolist(), strict=True))


@given(frames, seeds, epochs, groups)
def test_an_epoch_visits_each_sample_exactly_once(
    counts: tuple[int, ...], seed: int, epoch: int, group_frames: int
) -> None:
    order = Order(counts, seed, group_frames)

    visited = places(order, epoch, 0, order.num_samples)

    assert sorted(visited) == [
        (frame, index) for frame, count in enumerate(counts) for index in range(count)
    ]


@given(frames, seeds, epochs, groups, st.data())
def test_any_stretch_is_the_same_stretch_of_the_whole(
    counts: tuple[int, ...], seed: int, epoch: int, group_frames: int, data: st.DataObject
) -> None:
    order = Order(counts, seed, group_frames)
    start = data.draw(st.integers(0, order.num_samples - 1))
    stop = data.draw(st.integers(start + 1, order.num_samples))

    whole = places(order, epoch, 0, order.num_samples)

    assert places(order, epoch, start, stop) == whole[start:stop]


def test_epochs_and_seeds_differ() -> None:
    counts = (10,) * 40
    orders = [
        tuple(places(Order(counts, seed), epoch, 0, 400)) for seed in range(3) for epoch in range(3)
    ]

    assert len(set(orders)) == 9


def test_the_order_stays_what_it_was() -> None:
    # A run resumes in the order it began with, whatever version of ours resumes it.
    assert places(Order((3, 2, 4), seed=7), 1, 0, 9) == [
        (2, 3),
        (0, 0),
        (0, 1),
        (2, 0),
        (1, 0),
        (0, 2),
        (1, 1),
        (2, 1),
        (2, 2),
    ]


def test_samples_stay_within_their_group_so_that_few_frames_are_open() -> None:
    order = Order((10,) * 64, seed=0)

    opened = [
        len(set(order.locate(0, start, start + 10 * GROUP_FRAMES)[0].tolist()))
        for start in range(0, 640, 10 * GROUP_FRAMES)
    ]

    assert opened == [GROUP_FRAMES] * 4


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_in_the_order_are_not_neighbours_in_a_frame(seed: int) -> None:
    order = Order((100,) * 32, seed)

    found, _ = order.locate(0, 0, order.num_samples)

    share_together = float(np.mean(found[1:] == found[:-1]))
    assert share_together < 2 / GROUP_FRAMES
