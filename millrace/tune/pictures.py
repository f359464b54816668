"""Pictures of a study, from the facts of its manifest: history, rungs, cost, values, importance."""

import math
from collections.abc import Mapping
from typing import Any

from millrace.pictures import Bar, Upright, bar_chart, line_chart, parallel_chart
from millrace.search import Range, Values

Facts = Mapping[str, Any]
HEADROOM = 10
"""Times what an octave off costs: losses further up tell nothing of where the best rate is."""


def history_chart(facts: Facts) -> str:
    """Loss of each complete trial, and the best so far."""
    complete = [
        (trial["number"], trial["loss"]) for trial in facts["trials"] if trial["loss"] is not None
    ]
    best_so_far = [
        (number, min(loss for other, loss in complete if other <= number)) for number, _ in complete
    ]
    return line_chart(
        "Optimization history",
        {"best so far": best_so_far, "complete trial": complete},
        x_label="trial",
        y_label="validation loss",
        dots=frozenset({"complete trial"}),
    )


def rung_chart(facts: Facts) -> str:
    """Loss of each trial by rung, of those that came to a second one."""
    lines = {
        f"trial {trial['number']}": [(int(s), loss) for s, loss in trial["rungs"].items()]
        for trial in facts["trials"]
        if len(trial["rungs"]) > 1
    }
    return line_chart(
        "Trials by rung", lines, x_label="step", y_label="validation loss", log_y=True
    )


def cost_chart(facts: Facts, seconds: Mapping[str, float]) -> str:
    """What each trial took and where it ended; the chosen one apart.

    Args:
        facts: Of the study.
        seconds: Device-seconds by number of the trial.
    """
    spots: dict[str, list[tuple[float, float]]] = {"complete": [], "pruned": [], "chosen": []}
    for trial in facts["trials"]:
        if trial["rungs"]:
            kind = "complete" if trial["state"] == "COMPLETE" else "pruned"
            kind = "chosen" if trial["number"] == facts["best_trial"] else kind
            loss = list(trial["rungs"].values())[-1]
            spots[kind].append((seconds[str(trial["number"])], loss))
    return line_chart(
        "Loss against cost",
        spots,
        x_label="device-seconds of the trial",
        y_label="validation loss where it ended",
        dots=frozenset(spots),
    )


def values_chart(facts: Facts, space: Mapping[str, Values]) -> str:
    """The values of the trials, and their losses where they were last compared, side by side."""
    trials = [trial for trial in facts["trials"] if trial["rungs"]]
    uprights = [
        Upright(
            path.partition(".")[2],
            [trial["values"][path] for trial in trials],
            log=isinstance(values, Range) and values.log,
        )
        for path, values in space.items()
    ]
    losses = [trial["rungs"][max(trial["rungs"], key=int)] for trial in trials]
    uprights.append(Upright("loss at its last step", losses))
    numbers = [trial["number"] for trial in trials]
    good = [i for i, trial in enumerate(trials) if trial["state"] == "COMPLETE"]
    best = facts["best_trial"]
    chosen = numbers.index(best) if best in numbers else -1
    return parallel_chart("Parallel coordinates", uprights, good=frozenset(good), chosen=chosen)


def importance_chart(facts: Facts) -> str:
    """Share of each field in how good a trial was."""
    bars = [Bar(name, share, strong=True) for name, share in facts["importance"].items()]
    return bar_chart("Parameter importance (PED-ANOVA)", bars, unit="share")


def transfer_chart(told: Facts) -> str:
    """SVG of what `Transfer.to_dict` tells of a transfer that is on."""
    by_width: dict[int, list[tuple[float, float]]] = {}
    ceiling = max(one["loss"] for one in told["optima"]) + HEADROOM * told["octave_loss"]
    for one in told["trained"]:
        if one["loss"] is not None and one["loss"] <= ceiling:
            by_width.setdefault(one["width"], []).append((math.log2(one["rate"]), one["loss"]))
    series = {f"width {width}": sorted(points) for width, points in by_width.items()}
    best = [(math.log2(one["rate"]), one["loss"]) for one in told["optima"]]
    series["best of each width"] = best
    dots = {"best of each width"}
    if told["full_loss"] is not None:
        full = f"width {told['width']}"
        series[full] = [(math.log2(told["rate"]), told["full_loss"])]
        dots.add(full)
    return line_chart(
        "Learning rate, from smaller widths",
        series,
        x_label="log2 of the learning rate",
        y_label="validation loss",
        dots=frozenset(dots),
        bands={
            f"expected at width {told['width']}": (math.log2(told["low"]), math.log2(told["high"]))
        },
    )
