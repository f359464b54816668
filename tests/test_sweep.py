import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.train.sweep import LEAST_GAIN, doubling, fastest


def swept(table: Mapping[int, float], last: int) -> dict[int, float]:
    return doubling(1, last, lambda values: [table[value] for value in values])


def test_a_knob_is_doubled_until_it_is_no_faster() -> None:
    assert swept({1: 8.0, 2: 5.0, 4: 4.0, 8: 4.5, 16: 1.0}, 16) == {1: 8.0, 2: 5.0, 4: 4.0, 8: 4.5}


def test_the_last_value_is_tried_even_if_it_is_no_doubling() -> None:
    assert list(swept({1: 8.0, 2: 5.0, 4: 4.0, 6: 3.0}, 6)) == [1, 2, 4, 6]


def test_what_fails_at_first_does_not_end_the_sweep_what_fails_later_does() -> None:
    assert list(swept({1: math.inf, 2: math.inf, 4: 3.0, 8: 3.5, 16: 1.0}, 16)) == [1, 2, 4, 8]
    assert list(swept({1: 4.0, 2: 3.0, 4: math.inf, 8: 1.0}, 8)) == [1, 2, 4]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({1: 1.0, 2: 0.95, 4: 0.9}, 1),  # within what a shared machine wobbles by
        ({1: 1.0, 2: 0.95, 4: 0.8}, 4),
        ({1: 1.0, 2: 0.8, 4: 0.75}, 2),
        ({1: math.inf, 2: 0.9, 4: 1.0}, 2),
        ({1: math.inf}, 1),
    ],
)
def test_the_first_value_is_left_only_for_one_that_is_clearly_faster(
    found: Mapping[int, float], chosen: int
) -> None:
    assert fastest(found) == chosen


@given(st.dictionaries(st.integers(1, 64), st.floats(0.1, 100), min_size=1))
def test_no_value_beats_the_chosen_one_by_more_than_the_least_gain(
    found: dict[int, float],
) -> None:
    assert found[fastest(found)] <= LEAST_GAIN * min(found.values()) * (1 + 1e-9)
