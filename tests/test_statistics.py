import numpy as np
import pytest

from millrace.data.statistics import mean_and_deviation, sum_inputs


def test_images_are_standardized_by_channel_and_a_constant_feature_is_left_alone() -> None:
    images = np.random.default_rng(0).normal(5, 2, (7, 3, 4, 2)).astype(np.float32)
    images[:, 1] = 9
    parts = [sum_inputs(part) for part in (images[:3], images[3:])]

    mean, deviation = mean_and_deviation([*parts, []])

    assert mean == pytest.approx(images.mean((0, 2, 3)), rel=1e-6)
    assert deviation == pytest.approx([images[:, 0].std(), 1.0, images[:, 2].std()], rel=1e-6)
    assert mean_and_deviation([[], []]) == ([], [])
