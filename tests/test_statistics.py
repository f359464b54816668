from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.data.statistics import InputSums, Statistics, mean_and_deviation


def summed(*parts: npt.NDArray[Any]) -> Statistics:
    sums = InputSums()
    for part in parts:
        sums.add(part)
    return sums.to_list()


def test_images_are_standardized_by_channel_and_a_constant_feature_is_left_alone() -> None:
    images = np.random.default_rng(0).normal(5, 2, (7, 3, 4, 2)).astype(np.float32)
    images[:, 1] = 9
    parts = [summed(part) for part in (images[:3], images[3:])]

    mean, deviation = mean_and_deviation([*parts, []])

    assert mean == pytest.approx(images.mean((0, 2, 3)), rel=1e-6)
    assert deviation == pytest.approx([images[:, 0].std(), 1.0, images[:, 2].std()], rel=1e-6)
    assert mean_and_deviation([[], []]) == ([], [])


@given(st.lists(st.integers(0, 50), max_size=6), st.sampled_from([(3,), (1, 7, 9), (3, 40, 50)]))
def test_sums_are_the_same_to_the_bit_however_inputs_are_parted(
    cuts: list[int], shape: tuple[int, ...]
) -> None:
    inputs = np.random.default_rng(0).normal(5, 1e3, (50, *shape)).astype(np.float32)

    parted = summed(*np.split(inputs, sorted(cuts)))

    assert parted == summed(inputs)


def test_pixels_are_summed_as_numbers_not_as_bytes() -> None:
    pixels = np.full((9, 1, 20, 20), 255, np.uint8)

    assert summed(pixels) == [[3600, 3600 * 255.0, 3600 * 255.0**2]]
