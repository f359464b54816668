"""Pictures of a study, from the facts of its manifest: history, rungs, cost, values, importance."""

from collections.abc import Mapping
from typing import Any

from millrace.pictures import Bar, Upright, bar_chart, line_chart, parallel_chart
from millrace.search import Range, Values

Facts = Mapping[str, Any]


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
    """The values of the trials, and their losses at the first rung, in parallel coordinates."""
    trials = [trial for trial in facts["trials"] if trial["rungs"]]
    step = min((int(step) for trial in trials for step in trial["rungs"]), default=0)
    trials = [trial for trial in trials if str(step) in trial["rungs"]]
    uprights = [
        Upright(
            path.partition(".")[2],
            [trial["values"][path] for trial in trials],
            log=isinstance(values, Range) and values.log,
        )
        for path, values in space.items()
    ]
    losses = [trial["rungs"][str(step)] for trial in trials]
    uprights.append(Upright(f"loss at step {step}", losses))
    numbers = [trial["number"] for trial in trials]
    good = [i for i, trial in enumerate(trials) if trial["state"] == "COMPLETE"]
    best = facts["best_trial"]
    chosen = numbers.index(best) if best in numbers else -1
    return parallel_chart("Parallel coordinates", uprights, good=frozenset(good), chosen=chosen)


def importance_chart(facts: Facts) -> str:
    """Share of each field in how good a trial was."""
    bars = [Bar(name, share, strong=True) for name, share in facts["importance"].items()]
    return bar_chart("Parameter importance (PED-ANOVA)", bars, unit="share")
