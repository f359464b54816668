"""Classification: the most likely class of each record."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch

from millrace.answers.labels import answer_classes, shares_of
from millrace.data.fields import build_encoder
from millrace.data.images import decoded
from millrace.data.values import LabelIndex
from millrace.released import Released


def answer(released: Released, asked: Namespace) -> int:
    """Print the class of every record of a file or of standard input; the exit status."""
    return answer_classes(released, asked, classify)


def classify(released: Released, record: Mapping[str, Any]) -> dict[str, float]:
    """Probability of each class for one record, most likely first.

    Raises:
        UnusableRecordError: The record lacks what the model needs.
    """
    encoder = build_encoder(released.task)
    value = encoder.extract({**record, encoder.label: "?"})  # the question
    (columns,) = decoded([encoder.samples([value], LabelIndex())], encoder.fields)
    with torch.inference_mode():
        logits_BK = released.network(torch.tensor(columns["inputs"]).float())
    return shares_of(released.classes, logits_BK)
