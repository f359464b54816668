"""Tuners of other libraries, each spending compute on the same small trainings.

Each takes what it may spend and a seed, begins with the pipeline's own values, and searches until
all is spent. Optuna's look at a training after every ninth of its steps.
"""

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import optuna

from benchmarks.trainings import RUNGS, UNITS, Settings, Spending
from millrace.frozen import Scalar
from millrace.spec import Choices, Values
from millrace.tune.space import suggest

NUM_RANDOM = 24
"""Full trainings of random search, which are everybody's budget."""
REDUCTION = 3
RANDOM, DEFAULTS = "random search", "Optuna's defaults"
DIVERGED = 1e9
"""Ray's schedulers compare numbers only."""
Tuner = Callable[[Spending, int], None]


def search_at_random(spending: Spending, seed: int) -> None:
    """Full trainings of values drawn at random, without pruning."""
    for _, values in zip(range(NUM_RANDOM), _draws(spending, seed), strict=False):
        spending.begin(values).to(UNITS)


def search_with_optuna(spending: Spending, seed: int) -> None:
    """Optuna's defaults: TPE, and the pruner that compares with the median."""
    _ask_and_tell(spending, seed, optuna.pruners.MedianPruner())


def search_with_hyperband(spending: Spending, seed: int) -> None:
    """Optuna's TPE and its Hyperband, from a ninth of the steps on."""
    pruner = optuna.pruners.HyperbandPruner(
        min_resource=1, max_resource=UNITS, reduction_factor=REDUCTION
    )
    _ask_and_tell(spending, seed, pruner)


def search_with_asha(spending: Spending, seed: int) -> None:
    """Ray Tune's ASHA over the draws of random search, one trial at a time.

    The scheduler is asked directly: what Ray itself takes to start and follow trials is not
    counted.
    """
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler(
        time_attr="unit",
        metric="loss",
        mode="min",
        max_t=UNITS,
        grace_period=1,
        reduction_factor=REDUCTION,
    )
    draws = _draws(spending, seed)
    while not spending.is_over:
        trial = SimpleNamespace(trial_id=str(spending.num_begun))
        scheduler.on_trial_add(None, trial)
        training = spending.begin(next(draws))
        for unit in RUNGS:  # at others the scheduler lets every trial go on
            result = {"unit": unit, "loss": min(training.to(unit), DIVERGED)}
            if scheduler.on_trial_result(None, trial, result) == ASHAScheduler.STOP:
                break
        scheduler.on_trial_complete(None, trial, result)


def _ask_and_tell(spending: Spending, seed: int, pruner: optuna.pruners.BasePruner) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=f"study-{seed}",  # Hyperband draws brackets by it
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=pruner,
    )
    study.enqueue_trial(dict(spending.trainings.default))
    while not spending.is_over:
        trial = study.ask()
        training = spending.begin(suggest(trial, spending.trainings.job.spec.search.space))
        for unit in range(1, UNITS + 1):
            loss = training.to(unit)
            if not math.isfinite(loss):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                break
            trial.report(loss, unit)
            if unit < UNITS and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, loss)


def _draws(spending: Spending, seed: int) -> Iterator[Settings]:
    """The default, then values drawn at random; the same ones for the same seed."""
    yield spending.trainings.default
    draw = np.random.default_rng(seed)
    while True:
        space = spending.trainings.job.spec.search.space
        yield {path: _drawn(values, draw) for path, values in space.items()}


def _drawn(values: Values, draw: np.random.Generator) -> Scalar:
    if isinstance(values, Choices):
        return values.choices[int(draw.integers(len(values.choices)))]
    if values.log:
        return math.exp(draw.uniform(math.log(values.low), math.log(values.high)))
    return float(draw.uniform(values.low, values.high))


TUNERS: dict[str, Tuner] = {
    RANDOM: search_at_random,
    DEFAULTS: search_with_optuna,
    "Optuna's Hyperband": search_with_hyperband,
    "Ray Tune's ASHA": search_with_asha,
}
