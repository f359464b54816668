"""The search space of a spec in Optuna's terms."""

from collections.abc import Mapping

import optuna

from millrace.frozen import Scalar
from millrace.search import Choices, Values


def suggest(trial: optuna.Trial, space: Mapping[str, Values]) -> dict[str, Scalar]:
    """A value for each field of the space, drawn by the study's sampler."""
    return {path: _suggest(trial, path, values) for path, values in space.items()}


def _suggest(trial: optuna.Trial, path: str, values: Values) -> Scalar:
    if isinstance(values, Choices):
        chosen = trial.suggest_categorical(path, values.choices)
        assert chosen is not None, "a choice is a scalar"
        return chosen
    if isinstance(values.low, int) and isinstance(values.high, int):
        return trial.suggest_int(path, values.low, values.high, log=values.log)
    return trial.suggest_float(path, values.low, values.high, log=values.log)
