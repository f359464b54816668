"""The picture of a transfer: loss by learning rate at each width, and where the best ones lead."""

import math
from collections.abc import Mapping
from typing import Any

from millrace.pictures import line_chart

HEADROOM = 10
"""Times what an octave loses: further up losses tell nothing of where the best rate is."""


def transfer_chart(told: Mapping[str, Any]) -> str:
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
