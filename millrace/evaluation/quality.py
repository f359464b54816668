"""Quality as facts: the metric, gains over others on the same records, slices; all with intervals.

per record sums + clusters --> metric                  [interval]
  the same of another      --> its metric, our gain    [paired interval]
  the records of a slice   --> its metric, our gain    [interval; simultaneous interval]
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from millrace.evaluation.auroc import macro_auroc
from millrace.evaluation.calibration import Reliability
from millrace.evaluation.confusion import confusion, macro_f1, mcc
from millrace.evaluation.gate import MIN_DRAWN
from millrace.evaluation.intervals import LEVEL, Estimate, Floats, Numbers, paired, ratio
from millrace.evaluation.slices import Slices


@dataclass(frozen=True, eq=False)
class Measured:
    """Test records, what the metric adds up over them, and which are drawn together.

    Args:
        metric: (records,) summed over the samples of each.
        weight: (records,) what it is divided by.
        higher_is_better: Whether a high metric is good.
        clusters: (records,) number of each record's cluster; None: each is its own.
    """

    metric: Floats
    weight: Floats
    higher_is_better: bool
    clusters: Numbers | None = None

    @property
    def num_drawn(self) -> int:
        """Records, or clusters where these are drawn."""
        return len(self.metric) if self.clusters is None else len(np.unique(self.clusters))

    def of(self, chosen: Numbers) -> "Measured":
        """The records that `chosen` (a mask) names."""
        clusters = None if self.clusters is None else self.clusters[chosen]
        return Measured(self.metric[chosen], self.weight[chosen], self.higher_is_better, clusters)

    def estimate(self, *, level: float = LEVEL) -> Estimate:
        """The metric."""
        return ratio(self.metric, self.weight, self.clusters, level=level)

    def gain(self, other: Floats, *, level: float = LEVEL) -> Estimate:
        """By how much the metric is better than another's, given its (records,) sums."""
        sign = 1.0 if self.higher_is_better else -1.0
        return paired(sign * (self.metric - other), self.weight, self.clusters, level=level)

    def compared(self, other: Floats) -> dict[str, Any]:
        """Another's metric, and the gain over it."""
        theirs = ratio(other, self.weight, self.clusters)
        return {**theirs.to_dict(), "gain": self.gain(other).to_dict()}


def choose_clusters(files: Numbers) -> tuple[Numbers | None, dict[str, Any]]:
    """Whether source files or single records are drawn, and what to tell of it.

    Records of one file are alike, so files are drawn, unless there are too few to tell how much
    files differ: then records are, as if they had nothing in common.

    Args:
        files: (records,) number of each test record's source file.
    """
    num_files = len(np.unique(files))
    is_by_file = MIN_DRAWN <= num_files < len(files)
    return files if is_by_file else None, {
        "num_files": num_files,
        "drawn": "source files" if is_by_file else "records",
        "num_drawn": num_files if is_by_file else len(files),
    }


def judge_slices(
    slicings: Mapping[str, Slices], measured: Measured, released: Floats | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The metric of every slice, and its gain over the release, by slicing.

    Beside the intervals of LEVEL stand simultaneous ones: all of them hold the true values at
    once as often as LEVEL says (Bonferroni's inequality; Dunn 1961, "Multiple comparisons among
    means"). Slices with less than MIN_DRAWN to draw are too small to be judged, and not counted.

    Args:
        slicings: How the records are divided.
        measured: The records.
        released: (records,) what the metric of the release adds up to, if it is compared.
    """
    parts = {
        slicing: [(name, slices.number == number) for number, name in enumerate(slices.names)]
        for slicing, slices in slicings.items()
    }
    judged = sum(
        measured.of(chosen).num_drawn >= MIN_DRAWN for part in parts.values() for _, chosen in part
    )
    level = 1 - (1 - LEVEL) / max(1, judged)
    return {
        slicing: [
            _judge(name, measured.of(chosen), None if released is None else released[chosen], level)
            for name, chosen in part
        ]
        for slicing, part in parts.items()
    }


def _judge(name: str, part: Measured, released: Floats | None, level: float) -> dict[str, Any]:
    told = {
        "name": name,
        "num_records": len(part.metric),
        "num_drawn": part.num_drawn,
        **part.estimate().to_dict(),
        "simultaneous": part.estimate(level=level).to_dict(),
    }
    if released is not None:
        told["gain"] = {
            **part.gain(released).to_dict(),
            "simultaneous": part.gain(released, level=level).to_dict(),
        }
    return told


def further_facts(
    metric: str, value: float, samples: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, Any]:
    """Metrics beside the gate's: the perplexity of bits; of classes, what `samples` tells of them.

    Args:
        metric: The gate's metric.
        value: Its value.
        samples: Columns `label` and `probability` (samples, classes), where there are classes.
        classes: Their names.
    """
    if "probability" in samples:
        return _class_facts(samples["label"], samples["probability"], list(classes))
    unit = metric.removeprefix("bits_per_")
    return {"metrics": {} if unit == metric else {f"perplexity_per_{unit}": 2.0**value}}


def _class_facts(labels: Numbers, probabilities: Floats, classes: list[str]) -> dict[str, Any]:
    counts = confusion(labels, probabilities.argmax(1), len(classes))
    reliability = Reliability.of(probabilities, labels)
    area = macro_auroc(probabilities, labels)
    return {
        "classes": classes,
        "confusion": counts.tolist(),
        "reliability": reliability.to_dict(),
        "metrics": {
            "macro_f1": macro_f1(counts),
            "mcc": mcc(counts),
            "calibration_error": reliability.error,
        }
        | ({} if math.isnan(area) else {"auroc": area}),
    }
