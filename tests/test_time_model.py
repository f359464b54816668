from dataclasses import replace

import pytest

from millrace.plan.time_model import (
    BACKWARD_SHARE,
    StepConstants,
    default_constants,
    reduce_quantities,
    reduce_seconds,
    step_seconds,
    training_seconds,
)
from tests.plan_runs import build_work

CONSTANTS = default_constants("cpu")
NONE = StepConstants(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_a_step_is_the_sum_of_its_terms_by_hand() -> None:
    work = build_work(
        batch=8, ranks=2, threads=2, microbatches=3, blocks=4, parameters=1000,
        flops_per_sample=1e6, kept_bytes_per_sample=1e3, raw_bytes_per_sample=10.0,
    )  # fmt: skip
    step = StepConstants(0.1, 0.01, 0.02, 1e-6, 1e-3, 0.5, 1e-4, 1e-3)

    found = step_seconds(work, replace(CONSTANTS, step=step))

    compute = 3 * (0.1 + 4 * 0.01) + 4 * 4 / 2 * 0.02 + 4 * 1e6 / 2 * 1e-6 + 4 * 1e3 / 2 * 1e-3
    reduce = 2 * 0.5 + 2 * (1 / 2) * 4000 * 1e-4
    assert found == pytest.approx(compute + reduce + 1000 / 2 * 1e-3)


def test_data_that_come_too_late_set_the_pace() -> None:
    work = build_work(batch=8, raw_bytes_per_sample=1000.0)

    assert step_seconds(work, replace(CONSTANTS, data_byte=1.0)) == 8000


def test_one_rank_has_nothing_to_reduce() -> None:
    assert reduce_seconds(build_work(ranks=1), CONSTANTS) == 0


def test_bytes_of_the_all_reduce_do_not_shrink_with_more_ranks() -> None:
    constants = replace(CONSTANTS, step=replace(NONE, reduced_byte=1e-6))

    found = [reduce_seconds(build_work(batch=64, ranks=n), constants) for n in (2, 4, 8, 64)]

    assert found == sorted(found)
    assert found[-1] < 2 * found[0]


def test_twice_the_bandwidth_halves_the_all_reduce_and_nothing_else() -> None:
    work = build_work(ranks=2)
    faster = replace(CONSTANTS.step, reduced_byte=CONSTANTS.step.reduced_byte / 2)

    saved = step_seconds(work, CONSTANTS) - step_seconds(work, replace(CONSTANTS, step=faster))

    bytes_term = reduce_quantities(work)[1] * CONSTANTS.step.reduced_byte
    assert saved == pytest.approx(bytes_term / 2)


def test_the_backward_hides_no_more_of_the_all_reduce_than_there_is() -> None:
    work = build_work(ranks=2)
    alone = step_seconds(work.model_copy(update={"ranks": 1, "batch": 16}), CONSTANTS)
    hidden = step_seconds(work, replace(CONSTANTS, overlap=1.0))
    shown = step_seconds(work, CONSTANTS)

    assert alone <= hidden < shown
    compute = step_seconds(work, replace(CONSTANTS, step=replace(CONSTANTS.step, parameter=0.0)))
    assert shown - hidden <= BACKWARD_SHARE * compute + 1e-12


@pytest.mark.parametrize("device", ["cpu", "NVIDIA H100"])
def test_more_steps_take_longer_by_their_steps_alone(device: str) -> None:
    constants = default_constants(device)
    short, long = (build_work(device=device, steps=n) for n in (100, 300))

    one, other = training_seconds(short, constants), training_seconds(long, constants)

    assert other.updates - one.updates == pytest.approx(200 * step_seconds(short, constants))
    assert (other.start, other.validations) == (one.start, one.validations)
