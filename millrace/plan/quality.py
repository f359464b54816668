"""What quality costs: dollars for each point over the best baseline, and for the next one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from millrace.frozen import Frozen
from millrace.work import NonNegative

HIGHER_IS_BETTER_POINT = 0.01
LOWER_IS_BETTER_SHARE = 0.01


class QualityPrice(Frozen):
    """Dollars for quality; 0 where there was none to pay for, or none can be told."""

    metric: str
    point: NonNegative
    """What one point is, in the metric's unit: a hundredth where more is better, else a hundredth
    of the best baseline's value."""
    gained: float
    """Points over the best baseline; below 0: it is better."""
    usd_per_point: NonNegative
    """Of the whole run, for each of them."""
    next_point_usd: NonNegative
    """Of training on, as the validation metric rose in the last half of the training."""


def price_quality(
    facts: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
    run_usd: float,
    usd_per_step: float,
) -> QualityPrice | None:
    """The price of an evaluation's quality; None where it has no baseline.

    Args:
        facts: Of the evaluation.
        curve: Of the training, with the same metric on the validation split.
        run_usd: Of the whole run.
        usd_per_step: Of an update.
    """
    values = [found["value"] for found in facts["baselines"].values()]
    if not values:
        return None
    sign = 1.0 if facts["higher_is_better"] else -1.0
    best = max(values, key=lambda value: sign * value)
    point = HIGHER_IS_BETTER_POINT if sign > 0 else LOWER_IS_BETTER_SHARE * abs(best)
    gained = sign * (facts["estimate"]["value"] - best) / point if point else 0.0
    per_step = sign * slope(curve, facts["metric"])
    return QualityPrice(
        metric=facts["metric"],
        point=point,
        gained=gained,
        usd_per_point=run_usd / gained if gained > 0 else 0.0,
        next_point_usd=point / per_step * usd_per_step if per_step > 0 else 0.0,
    )


def slope(curve: Sequence[Mapping[str, float]], metric: str) -> float:
    """Change of a metric with each step over the last half of a curve; 0 with fewer than two looks.

    By least squares, so that one lucky look does not decide.
    """
    points = [(point["step"], point[metric]) for point in curve if metric in point]
    late = [(step, value) for step, value in points if step >= points[-1][0] / 2]
    if len(late) < 2:
        return 0.0
    steps, values = np.array(late, float).T
    steps -= steps.mean()
    return float(steps @ (values - values.mean()) / (steps @ steps))
