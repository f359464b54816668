"""Whether answers are right as often as their probabilities say: reliability and its error."""

from dataclasses import dataclass

import numpy as np

from millrace.evaluation.intervals import Floats, Numbers

NUM_BINS = 15


@dataclass(frozen=True, eq=False)
class Reliability:
    """Answers in bins of equal width by their probability, bins without any left out.

    Args:
        count: (bins,) answers.
        confidence: (bins,) their mean probability.
        accuracy: (bins,) share of them that are right.
    """

    count: Numbers
    confidence: Floats
    accuracy: Floats

    @classmethod
    def of(cls, probabilities: Floats, labels: Numbers) -> "Reliability":
        """Of the most probable class as the answer; (samples, classes) and (samples,)."""
        confidence = probabilities.max(1).astype(np.float64)
        is_right = probabilities.argmax(1) == labels
        number = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
        count = np.bincount(number, minlength=NUM_BINS)
        sums = (np.bincount(number, part, NUM_BINS) for part in (confidence, is_right))
        held = count > 0
        mean_confidence, accuracy = (part[held] / count[held] for part in sums)
        return cls(count[held], mean_confidence, accuracy)

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of accuracy and confidence (Guo 2017)."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))

    def to_dict(self) -> dict[str, list[float]]:
        """Plain values for a manifest."""
        return {name: getattr(self, name).tolist() for name in ("count", "confidence", "accuracy")}
