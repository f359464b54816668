"""Labels: the most likely class of a record, by the logits of its samples."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from millrace.answers.records import answer_records
from millrace.released import Released

Classify = Callable[[Released, Mapping[str, Any]], dict[str, float]]
"""Probability of each class for one record, most likely first."""


def answer_classes(released: Released, asked: Namespace, classify: Classify) -> int:
    """Print the class of every record of a file or of standard input; the exit status."""

    def told(record: Mapping[str, Any]) -> dict[str, Any]:
        return most_likely(classify(released, record))

    return answer_records(released.source, asked.input, told)


def shares_of(classes: Sequence[str], logits_BK: Tensor) -> dict[str, float]:
    """Probability of each class most likely first; the mean over the record's samples."""
    found = dict(zip(classes, logits_BK.softmax(1).mean(0).tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def most_likely(shares: Mapping[str, float]) -> dict[str, Any]:
    """The first class and its probability, as they are printed."""
    best = next(iter(shares))
    return {"class": best, "probability": round(shares[best], 6)}
