import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from millrace.errors import TrainingError
from millrace.frozen import Scalar
from millrace.search import SearchSpec
from millrace.tune.coordinator import Coordinator, new_study
from millrace.tune.memo import Key, Memo
from millrace.tune.repetitions import Choice
from millrace.tune.rung import Pool, Rung, RungJob
from millrace.tune.rung import settings as as_settings
from tests.formula_pool import FormulaPool, bowl

RATE = {"low": 1e-4, "high": 1.0, "log": True}
DEFAULT: dict[str, Scalar] = {"train.learning_rate": 0.3}
WIDTH = {"choices": [16, 64]}


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def search(**fields: Any) -> SearchSpec:
    values = {"space": {"train.learning_rate": RATE}, "trials": 20, "steps": 90}
    return SearchSpec.model_validate(values | fields)


def run(
    pool: Pool,
    spec: SearchSpec,
    first: list[dict[str, Scalar]] | None = None,
    budget_seconds: float = math.inf,
) -> tuple[Coordinator, list[FrozenTrial], Choice]:
    study = new_study(spec, first or [DEFAULT])
    coordinator = Coordinator(study, spec, pool, budget_seconds)
    told = [trial for trial in coordinator.search() if trial.state.is_finished()]
    list(coordinator.repeat())
    return coordinator, sorted(told, key=lambda trial: trial.number), coordinator.choice()


def facts(told: list[FrozenTrial]) -> list[Any]:
    return [(t.number, t.state, t.params, t.value, t.intermediate_values) for t in told]


def known_of(told: list[FrozenTrial]) -> dict[Key, Rung]:
    """What a record would know of these trials."""
    return {
        (as_settings(trial.params), 0, row["to"]): Rung(
            trial.intermediate_values[int(step)],
            row["step"],
            row["seconds"],
            step_seconds=row["step_seconds"],
        )
        for trial in told
        for step, row in trial.user_attrs["rungs"].items()
    }


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_order_in_which_a_pool_ends_its_jobs_changes_nothing(seed: int, together: int) -> None:
    spec = search(together=together)

    _, told, choice = run(FormulaPool(seed=seed), spec)
    _, again, same = run(FormulaPool(seed=seed + 1), spec)

    assert facts(told) == facts(again)
    assert choice == same


def test_the_default_comes_first_and_is_trained_to_the_end_however_bad() -> None:
    _, told, choice = run(FormulaPool(), search(), [{"train.learning_rate": 1.0}])

    assert told[0].params == {"train.learning_rate": 1.0}
    assert told[0].state is TrialState.COMPLETE
    assert list(told[0].intermediate_values) == [10, 30, 90]
    assert choice.trial != 0


def test_no_more_than_a_third_goes_on_from_a_rung_however_good_later_trials_are() -> None:
    _, told, _ = run(FormulaPool(), search(trials=30, repetitions=0))

    states = [trial.state for trial in told]
    steps = sum(max(trial.intermediate_values) for trial in told)
    assert states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED) == 30
    reached = [sum(step in trial.intermediate_values for trial in told) for step in (10, 30, 90)]
    assert reached[0] == 30
    assert reached[1] <= 30 // 3 + 3  # and the default, and those that better ones came after
    assert reached[2] <= 13 // 3 + 5
    assert steps < 0.4 * 30 * 90


def test_a_trial_that_rests_goes_on_when_there_is_room_for_it() -> None:
    coordinator = Coordinator(new_study(search(), [DEFAULT]), search(), FormulaPool())

    seen = [(trial.number, trial.state) for trial in coordinator.search()]

    resting = [number for number, state in seen if state is TrialState.RUNNING]
    complete = {number for number, state in seen if state is TrialState.COMPLETE} - {0}
    assert complete
    assert all(resting.count(number) == 2 for number in complete)


def test_what_has_been_good_elsewhere_is_tried_after_the_default() -> None:
    first: list[dict[str, Scalar]] = [DEFAULT, {"train.learning_rate": 0.011}]

    _, told, choice = run(FormulaPool(), search(trials=2), first)

    assert [trial.params for trial in told] == first
    assert choice.trial == 1


def test_a_lucky_trial_is_found_out_by_fresh_seeds() -> None:
    def loss(values: Mapping[str, Scalar], step: int, repetition: int) -> float:
        rate = float(values["train.learning_rate"])
        lucky = rate < 1e-3 and repetition == 0
        return 0.5 if lucky else 0.6 + abs(math.log10(rate) + 2) / 10 + 5 * (rate < 1e-3)

    _, told, choice = run(FormulaPool(loss), search(trials=24, seed=3))

    by_luck = min(told, key=lambda trial: (trial.state is not TrialState.COMPLETE, trial.value))
    assert float(by_luck.params["train.learning_rate"]) < 1e-3
    assert float(told[choice.trial].params["train.learning_rate"]) >= 1e-3
    assert choice.mean(choice.trial) < choice.mean(by_luck.number)  # type: ignore[operator]  # both were weighed
    assert choice.noise > 1


def test_without_repetitions_the_best_single_loss_is_chosen() -> None:
    _, told, choice = run(FormulaPool(), search(repetitions=0))

    best = min((t.value, t.number) for t in told if t.state is TrialState.COMPLETE)
    assert choice.trial == best[1]
    assert set(choice.losses) == {0, choice.trial}
    assert math.isnan(choice.noise)


def test_a_trial_without_a_finite_loss_fails_and_the_study_goes_on() -> None:
    def loss(values: Mapping[str, Scalar], step: int, repetition: int) -> float:
        diverges = float(values["train.learning_rate"]) > 0.1
        return math.inf if diverges and step > 10 else bowl(values, step, repetition)

    _, told, choice = run(FormulaPool(loss), search())

    assert told[0].state is TrialState.FAIL
    assert told[0].user_attrs["failed"] == "the loss is inf"
    assert told[choice.trial].state is TrialState.COMPLETE
    assert choice.mean(0) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_study_of_which_every_trial_fails_is_an_error(loss: float) -> None:
    with pytest.raises(TrainingError, match="find the best of 5 trials: none ended with a finite"):
        run(FormulaPool(lambda *_: loss), search(trials=5))


def test_a_repetition_that_diverges_costs_its_trial_the_choice() -> None:
    def loss(values: Mapping[str, Scalar], step: int, repetition: int) -> float:
        is_best = 0.005 < float(values["train.learning_rate"]) < 0.02
        return math.nan if repetition and is_best else bowl(values, step, repetition)

    first: list[dict[str, Scalar]] = [DEFAULT, {"train.learning_rate": 0.01}]
    _, _, choice = run(FormulaPool(loss), search(trials=4), first)

    assert choice.losses[1][1] == math.inf
    assert choice.trial == 0


@pytest.mark.parametrize(
    "space", [{"choices": [0.3]}, {"low": 0.3, "high": 0.3}, {"low": 0.3, "high": 0.3, "log": True}]
)
def test_a_space_of_one_point_is_trained_once(space: dict[str, Any]) -> None:
    pool = FormulaPool()

    coordinator, told, choice = run(
        Memo(pool, {}), search(space={"train.learning_rate": space}, trials=100, together=1)
    )

    assert [job.to for job in pool.trained] == [10, 30, 90]
    assert choice.trial == 0
    assert len(told) == 21
    assert coordinator.stopped == "the last 20 trials had all been tried before"


def test_a_study_ends_when_its_last_third_gains_less_than_seeds_differ() -> None:
    def loss(values: Mapping[str, Scalar], step: int, repetition: int) -> float:
        return 1 + 1e-3 * float(values["train.learning_rate"]) + 9 / (step + 9) + repetition / 10

    coordinator, told, _ = run(FormulaPool(loss), search(trials=60, seed=1))

    assert 40 <= len(told) < 60
    assert "its last third gained" in coordinator.stopped
    assert "less than the 0.0707 between seeds" in coordinator.stopped


def test_a_first_rung_that_tells_nothing_is_given_up() -> None:
    def loss(values: Mapping[str, Scalar], step: int, repetition: int) -> float:
        end = bowl(values, step, repetition)
        return 10 - end if step == 10 else end

    coordinator, told, _ = run(FormulaPool(loss), search(trials=100, repetitions=0))

    assert coordinator.is_first_rung_given_up
    assert 10 not in told[-1].intermediate_values
    assert coordinator.correlation.value < 0.7


def test_a_first_rung_that_tells_is_kept() -> None:
    coordinator, _, _ = run(FormulaPool(), search(trials=60, repetitions=0))

    assert not coordinator.is_first_rung_given_up
    assert coordinator.correlation.value > 0.7
    assert coordinator.correlation.num_trials >= 6


@pytest.mark.parametrize("budget_seconds", [3.0, 10.0])
def test_a_budget_is_spent_and_not_exceeded_by_more_than_a_rung(budget_seconds: float) -> None:
    spec = search(trials=1000, together=2)

    coordinator, told, choice = run(FormulaPool(), spec, budget_seconds=budget_seconds)

    spent = coordinator.account.spent_seconds
    assert 0.7 * budget_seconds < spent < budget_seconds + 60 * 0.01
    assert "device-seconds are spent" in coordinator.stopped or "gained" in coordinator.stopped
    assert told[choice.trial].state is TrialState.COMPLETE


def test_with_a_budget_a_costlier_trial_earns_fewer_steps() -> None:
    space = {"train.learning_rate": {"low": 0.009, "high": 0.011}, "network.width": WIDTH}
    first: list[dict[str, Scalar]] = [{"train.learning_rate": 0.01, "network.width": 16}]

    def loss(values: Mapping[str, Scalar], step: int, repetition: int) -> float:
        return bowl(values, step, repetition) - (values["network.width"] == 64)

    pool = FormulaPool(loss, step_seconds=lambda values: 0.01 * int(values["network.width"]) / 16)

    run(pool, search(space=space, trials=40, together=1), first, budget_seconds=15.0)

    steps: dict[Scalar, set[int]] = {16: set(), 64: set()}
    for job in pool.trained:
        if not job.repetition:
            steps[job.values["network.width"]].add(job.to)
    assert steps[16] == {10, 30, 90}
    assert steps[64] <= {10, 8, 22}
    assert 8 in steps[64]
    again = {
        int(str(job.values["network.width"])): job.to for job in pool.trained if job.repetition
    }
    assert again[16] == 90
    assert again.get(64, 22) == 22


def test_what_a_lost_worker_cost_does_not_make_its_trial_a_costlier_one() -> None:
    def lose_time(job: RungJob, rung: Rung) -> Rung:
        is_hit = job.to == 10 and job.trial == 1
        return replace(rung, seconds=rung.seconds + 5 * is_hit, step_seconds=0.01)

    first: list[dict[str, Scalar]] = [DEFAULT, {"train.learning_rate": 0.01}]
    pool = FormulaPool(on_end=lose_time)

    run(pool, search(trials=4, together=1), first, budget_seconds=60.0)

    assert [job.to for job in pool.trained if job.trial == 1 and not job.repetition] == [10, 30, 90]


def test_repetitions_are_known_before_the_search_ends() -> None:
    spec = search(trials=30)
    coordinator = Coordinator(new_study(spec, [DEFAULT]), spec, FormulaPool())

    known = [len(list(coordinator.repeated())) for _ in coordinator.search()]

    assert known[0] == 0
    assert known[-1] == 1


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        ({"max_memory_bytes": 1000}, lambda width: {"memory_bytes": 50 * width}),
        ({"max_latency_seconds": 0.5}, lambda width: {"latency_seconds": width / 100}),
    ],
)
def test_a_trial_that_breaks_a_limit_wins_nothing_and_ends_at_once(
    limit: dict[str, float], found: Callable[[int], dict[str, float]]
) -> None:
    def loss(values: Mapping[str, Scalar], step: int, repetition: int) -> float:
        return bowl(values, step, repetition) - (values["network.width"] == 64)

    space = {"train.learning_rate": RATE, "network.width": WIDTH}
    first: list[dict[str, Scalar]] = [{"train.learning_rate": 0.3, "network.width": 16}]
    pool = FormulaPool(loss, found=lambda values: found(int(values["network.width"])))

    _, told, choice = run(pool, search(space=space, **limit), first)

    wide = [trial for trial in told if trial.params["network.width"] == 64]
    assert wide
    assert {tuple(trial.intermediate_values) for trial in wide} == {(10,)}
    assert all(max(trial.constraints.values()) > 0 for trial in wide)
    assert told[choice.trial].params["network.width"] == 16


def test_limits_that_all_trials_break_are_an_error() -> None:
    pool = FormulaPool(found=lambda _: {"memory_bytes": 2})

    with pytest.raises(TrainingError, match="inside the limits of `search`"):
        run(pool, search(max_memory_bytes=1, trials=3))


@pytest.mark.parametrize("num_recorded", [1, 7, 13, 20])
def test_a_study_begun_anew_trains_only_what_was_not_recorded(num_recorded: int) -> None:
    spec, whole = search(), FormulaPool()
    study = new_study(spec, [DEFAULT])
    unbroken = Coordinator(study, spec, whole)
    seen = list(unbroken.search())
    ended = [trial for trial in seen if trial.state.is_finished()]

    pool = FormulaPool(seed=1)
    anew, told, _ = run(Memo(pool, known_of(seen[:num_recorded])), spec)

    assert facts(told) == facts(sorted(ended, key=lambda trial: trial.number))
    recorded = {
        (trial.number, row["to"])
        for trial in seen[:num_recorded]
        for row in trial.user_attrs["rungs"].values()
    }
    searched = {(job.trial, job.to) for job in pool.trained if not job.repetition}
    assert not searched & recorded
    assert anew.account.spent_seconds >= unbroken.account.spent_seconds


def test_a_budgeted_study_begun_anew_counts_what_was_spent() -> None:
    spec, whole = search(trials=1000), FormulaPool()
    unbroken, told, _ = run(whole, spec, budget_seconds=10.0)

    pool = FormulaPool()
    anew, again, _ = run(Memo(pool, known_of(told)), spec, budget_seconds=10.0)

    assert facts(again) == facts(told)
    assert {job.repetition for job in pool.trained} == {1}
    assert anew.account.spent_seconds == pytest.approx(unbroken.account.spent_seconds)
