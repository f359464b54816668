"""What a study tries first: the spec as written, then what has been good elsewhere."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from millrace.frozen import Scalar
from millrace.search import Values
from millrace.tune.repetitions import LEADING
from millrace.tune.rung import settings


def proposals(
    default: dict[str, Scalar],
    others: Iterable[Mapping[str, Scalar]],
    space: Mapping[str, Values],
) -> list[dict[str, Scalar]]:
    """The default and those of the others that lie in the space, each once."""
    found = {settings(default): default}
    for values in others:
        if values.keys() == space.keys() and all(
            space[path].holds(value) for path, value in values.items()
        ):
            found.setdefault(settings(values), dict(values))
    return list(found.values())


def leaders(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Scalar]]:
    """Values of the best trials of an earlier study, by their means, from its export.

    Their losses are not taken over: on other data they are not comparable. In a test in which the
    data drifted, a study that took over old trials never ended a new one.
    """
    complete = [trial for trial in trials if trial["state"] == "COMPLETE"]
    return [dict(trial["values"]) for trial in sorted(complete, key=_mean)[:LEADING]]


def _mean(trial: Mapping[str, Any]) -> float:
    fresh = [math.inf if loss is None else loss for loss in trial.get("repetitions", ())]
    losses = [float(trial["loss"]), *fresh]
    return sum(losses) / len(losses)
