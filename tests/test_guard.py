import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from millrace.train.guard import (
    HISTORY,
    PATIENCE,
    SKIPPED_BEFORE,
    Guard,
    Skips,
    Spike,
    Trend,
    back_to,
    follow,
)


def falling(count: int) -> list[float]:
    """Losses as of a training that goes well, with noise."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(count, generator=draw).mul(0.05).tolist()
    return [3 * math.exp(-i / 100) + 1 + x for i, x in enumerate(noise)]


def judged(losses: list[float]) -> Spike | None:
    return follow(Trend(), 0, losses, [1.0] * len(losses))[1]


def test_a_training_that_goes_well_has_no_spike() -> None:
    assert judged(falling(500)) is None


def test_one_hard_batch_is_no_spike_and_several_in_a_row_are() -> None:
    losses = falling(200)

    alone = [*losses[:100], 9.0, *losses[101:]]
    row = [*losses[:100], *[9.0] * PATIENCE, *losses[100 + PATIENCE :]]

    assert judged(alone) is None
    assert judged(row) == Spike(100, 100 + PATIENCE - 1, "loss", 9.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_seen_at_once_in_loss_and_gradient(value: float) -> None:
    fine = falling(10)

    in_loss = follow(Trend(), 40, [*fine, value, 1.0], [1.0] * 12)[1]
    in_norm = follow(Trend(), 40, [*fine, 1.0], [*[1.0] * 10, value])[1]

    assert in_loss is not None
    assert (in_loss.update, in_loss.what) == (50, "loss")
    assert in_norm is not None
    assert (in_norm.update, in_norm.what) == (50, "norm of the gradient")


def test_noise_about_nothing_is_no_spike() -> None:
    """A training set known by heart: losses of thousandths, now and then of hundredths."""
    draw = torch.Generator().manual_seed(1)
    tiny = torch.rand(3000, generator=draw).pow(8).mul(0.05).tolist()

    assert judged([2.3, *tiny]) is None


@given(st.lists(st.floats(0.1, 4.0), min_size=1, max_size=300), st.integers(1, 60))
def test_when_the_losses_are_looked_at_changes_nothing(losses: list[float], every: int) -> None:
    at_once, expected = follow(Trend(), 0, losses, [1.0] * len(losses))

    trend, spike = Trend(), None
    for start in range(0, len(losses), every):
        part = losses[start : start + every]
        trend, spike = follow(trend, start, part, [1.0] * len(part))
        if spike is not None:
            break

    assert (trend, spike) == (at_once, expected)


def test_skipped_batches_are_never_served_and_all_others_once() -> None:
    skips = Skips(((3, 5), (10, 20)))

    served = [skips.batch_of(update) for update in range(12)]

    assert served == [0, 1, 2, 5, 6, 7, 8, 9, 20, 21, 22, 23]


def test_a_spike_skips_what_led_there_and_goes_back_before_it() -> None:
    spike = Spike(100, 104, "loss", 9.0)

    skips = Skips().with_spike(spike)

    assert back_to(spike) == 100 - SKIPPED_BEFORE
    assert skips == Skips(((100 - SKIPPED_BEFORE, 105),), 1)
    assert [skips.batch_of(update) for update in (91, 92)] == [91, 105]


def test_a_second_spike_at_the_same_place_skips_more() -> None:
    once = Skips().with_spike(Spike(100, 100, "loss", math.nan))

    twice = once.with_spike(Spike(96, 96, "loss", math.nan))

    assert once.ranges == ((92, 101),)
    assert twice.ranges == ((88, 106),)  # four before the first range, five behind it
    assert twice.num_roll_backs == 2


def test_the_first_updates_go_back_to_the_beginning() -> None:
    spike = Spike(0, 0, "loss", math.nan)

    assert back_to(spike) == 0
    assert Skips().with_spike(spike).ranges == ((0, 1),)


def test_a_guard_takes_up_its_place_from_json() -> None:
    guard = Guard(torch.device("cpu"))
    guard.is_on = True
    losses = falling(HISTORY + 5)
    for loss in losses:
        guard.note(torch.tensor([2 * loss, 2.0]), torch.tensor(1.0))
    assert guard.look(len(losses), guard.taken().tolist(), 1) is None
    guard.skips = Skips(((1, 2),), 1)

    other = Guard(torch.device("cpu"))
    other.resume(json.loads(json.dumps(guard.place())))

    assert (other.trend, other.skips) == (guard.trend, guard.skips)
    assert len(other.trend.recent) == HISTORY
    other.resume({})
    assert (other.trend, other.skips) == (Trend(), Skips())


def test_a_guard_that_nobody_looks_at_keeps_nothing() -> None:
    guard = Guard(torch.device("cpu"))

    guard.note(torch.ones(2), torch.tensor(1.0))

    assert len(guard.taken()) == 0
