import math
import random
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from millrace.plan.fit import (
    Run,
    TimeModel,
    errors_left_out,
    fit,
    learn,
    nonnegative_least_squares,
    predict_seconds,
)
from millrace.plan.spread import PRIOR_SIGMA
from millrace.plan.time_model import Constants, StepConstants, default_constants
from millrace.work import Work
from tests.plan_runs import build_work, draw_works, run_of

PRIOR = default_constants("cpu")
STEP = PRIOR.step
# A machine that is not what the prior takes it for.
OTHER = replace(
    PRIOR,
    step=StepConstants(
        microbatch=3 * STEP.microbatch,
        block=0.5 * STEP.block,
        block_sample=2 * STEP.block_sample,
        flop=2.5 * STEP.flop,
        kept_byte=0.4 * STEP.kept_byte,
        hop=2 * STEP.hop,
        reduced_byte=3 * STEP.reduced_byte,
        parameter=2 * STEP.parameter,
    ),
    start=1.1,
    validation_flop=2 * PRIOR.validation_flop,
)


def noisy(works: list[Work], constants: Constants, sigma: float) -> list[Run]:
    draw = random.Random(1)  # noqa: S311  a fixed seed, not a secret
    return [run_of(work, constants, math.exp(draw.gauss(0, sigma))) for work in works]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(0, 12))
def test_nonnegative_least_squares_are_scipys(seed: int, unknowns: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(unknowns + more, unknowns))
    targets = rng.normal(size=unknowns + more)

    found = nonnegative_least_squares(rows, targets)

    theirs, norm = nnls(rows, targets)
    assert (found >= 0).all()
    assert np.linalg.norm(rows @ found - targets) == pytest.approx(norm, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-7)


def test_without_runs_the_constants_are_the_priors() -> None:
    assert learn([], PRIOR) == PRIOR


def test_a_fit_with_many_runs_forgets_its_prior() -> None:
    rng = np.random.default_rng(0)
    quantities = rng.uniform(1, 100, (200, 3))
    true = np.array([0.5, 0.02, 3.0])

    found = fit(quantities, quantities @ true, np.array([5.0, 0.2, 0.3]))

    np.testing.assert_allclose(quantities @ found, quantities @ true, rtol=0.02)
    np.testing.assert_allclose(found[[0, 2]], true[[0, 2]], rtol=0.02)  # the other is 0.6 % of all


def test_twenty_runs_on_another_machine_predict_the_rest_within_a_few_percent() -> None:
    works = draw_works(60)
    runs = noisy(works, OTHER, sigma=0.02)

    before = [TimeModel.of([], PRIOR).seconds(work) for work in works[20:]]
    after = [TimeModel.of(runs[:20], PRIOR).seconds(work) for work in works[20:]]

    true = [run.seconds for run in runs[20:]]
    errors = [abs(a / t - 1) for a, t in zip(after, true, strict=True)]
    assert np.mean(errors) < 0.05
    assert np.mean([abs(b / t - 1) for b, t in zip(before, true, strict=True)]) > 0.3


def test_the_same_training_with_more_steps_is_predicted_from_its_short_runs() -> None:
    runs = noisy(draw_works(30), OTHER, sigma=0.01)
    long = runs[7].work.model_copy(update={"steps": 10 * runs[7].work.steps})

    found = predict_seconds(long, runs, PRIOR)

    assert found.value == pytest.approx(run_of(long, OTHER).seconds, rel=0.05)


def test_one_run_of_the_very_same_training_corrects_most_of_the_error() -> None:
    work = build_work()
    slow = run_of(work, PRIOR, factor=3.0)

    before = abs(math.log(TimeModel.of([], PRIOR).seconds(work) / slow.seconds))
    after = abs(math.log(TimeModel.of([slow], PRIOR).seconds(work) / slow.seconds))

    assert after < before / 3


def test_intervals_hold_nine_times_in_ten() -> None:
    works = draw_works(150)
    runs = noisy(works, OTHER, sigma=0.08)

    held = [
        predict_seconds(work, runs[:25], PRIOR).holds(run.seconds)
        for work, run in zip(works[25:], runs[25:], strict=True)
    ]

    # One set of 25 runs: its own quantile varies, by +-0.06 (a beta distribution), and the
    # correction for near runs helps those that have one.
    assert 0.8 <= np.mean(held) <= 1.0


def test_errors_are_of_whole_unbroken_runs_and_shrink_with_what_is_known() -> None:
    runs = noisy(draw_works(30), OTHER, sigma=0.0)
    resumed = runs[0].model_copy(
        update={"timing": runs[0].timing.model_copy(update={"resumed_at": 10})}
    )

    few, many = errors_left_out([resumed, *runs[1:4]], PRIOR), errors_left_out(runs, PRIOR)

    assert (len(few), len(many)) == (3, 30)
    assert np.abs(many).mean() < np.abs(few).mean()
    assert np.abs(few).mean() < PRIOR_SIGMA * 4


def test_runs_that_waited_for_data_tell_how_fast_it_comes() -> None:
    starved = replace(OTHER, data_byte=1e-4)
    runs = []
    for work in draw_works(12):
        run = run_of(work, starved)
        waited = run.timing.loop_seconds - run_of(work, OTHER).timing.loop_seconds
        timing = run.timing.model_copy(update={"waited_seconds": max(0.0, waited)})
        runs.append(run.model_copy(update={"timing": timing}))

    found = learn(runs, PRIOR)

    assert found.data_byte == pytest.approx(1e-4, rel=0.1)


def test_a_run_on_another_device_corrects_nothing() -> None:
    work = build_work()
    model = TimeModel(PRIOR, (run_of(build_work(device="NVIDIA H100"), PRIOR, factor=9.0),))

    assert model.correction(work) == 1.0


def test_constants_are_never_negative() -> None:
    draw = random.Random(3)  # noqa: S311  likewise
    runs = [run_of(work, OTHER, math.exp(draw.gauss(0, 1.0))) for work in draw_works(15)]

    assert min(astuple(learn(runs, PRIOR).step)) >= 0
