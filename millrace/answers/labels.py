"""Labels: the most likely class of a record, by the logits of its samples."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def shares_of(classes: Sequence[str], logits_BK: Tensor) -> dict[str, float]:
    """Probability of each class most likely first; the mean over the record's samples."""
    found = dict(zip(classes, logits_BK.softmax(1).mean(0).tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def most_likely(shares: Mapping[str, float]) -> dict[str, Any]:
    """The first class and its probability, as they are printed."""
    best = next(iter(shares))
    return {"class": best, "probability": round(shares[best], 6)}
