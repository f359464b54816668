"""Pictures of an evaluation: the metric beside others', slices, confusion and reliability."""

from collections.abc import Mapping
from typing import Any

from millrace.pictures import Bar, bar_chart, grid_chart, line_chart

MOST_CLASSES = 24
"""In the picture of a confusion: those with the most mistakes."""
MOST_BARS = 24


def quality_picture(facts: Mapping[str, Any]) -> str:
    """The metric beside the release's and the baselines', with their intervals, as SVG."""
    release = {"the release before": facts["release"]} if "gain" in facts["release"] else {}
    others = release | facts["baselines"]
    bars = [Bar("this model", **facts["estimate"], strong=True)] + [
        Bar(name, found["value"], found["low"], found["high"]) for name, found in others.items()
    ]
    title = f"{facts['metric']} on {facts['num_records']} held-out records"
    return bar_chart(title, bars, unit=_unit(facts))


def slices_picture(facts: Mapping[str, Any], slicing: str) -> str:
    """The metric of each slice, the worst first where there are many, as SVG."""
    parts = facts["slices"][slicing]
    if len(parts) > MOST_BARS:
        sign = 1 if facts["higher_is_better"] else -1
        parts = sorted(parts, key=lambda part: sign * part["value"])[:MOST_BARS]
    bars = [Bar("all", **facts["estimate"], strong=True)] + [
        Bar(f"{part['name']} ({part['num_records']})", part["value"], part["low"], part["high"])
        for part in parts
    ]
    return bar_chart(f"{facts['metric']} by {slicing} (records)", bars, unit=_unit(facts))


def confusion_picture(facts: Mapping[str, Any]) -> str:
    """How often each class (row) was taken for each (column), as SVG."""
    counts, classes = facts["confusion"], facts["classes"]
    mistakes = [
        sum(row) + sum(other[i] for other in counts) - 2 * row[i] for i, row in enumerate(counts)
    ]
    ranked = sorted(range(len(classes)), key=lambda i: -mistakes[i])
    shown = sorted(ranked[:MOST_CLASSES])
    return grid_chart(
        "Samples of each class (row) by the class they were taken for (column)"
        + ("" if len(shown) == len(classes) else f"; of {len(classes)}, the most mistaken"),
        [classes[i] for i in shown],
        [[counts[i][j] for j in shown] for i in shown],
    )


def reliability_picture(facts: Mapping[str, Any]) -> str:
    """How often answers are right by how probable the network says they are, as SVG."""
    found = facts["reliability"]
    points = list(zip(found["confidence"], found["accuracy"], strict=True))
    return line_chart(
        f"Reliability; calibration error {facts['metrics']['calibration_error']:.3f}",
        {"as it should be": [(0.0, 0.0), (1.0, 1.0)], "answers, in bins": points},
        x_label="probability of the answer, by the network",
        y_label="share that is right",
        dots=frozenset({"answers, in bins"}),
    )


def _unit(facts: Mapping[str, Any]) -> str:
    direction = "higher" if facts["higher_is_better"] else "lower"
    return f"{direction} is better; whiskers: 95 % interval"
