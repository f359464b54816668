"""MaxCut: the largest of some cuts that are measured of each graph."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch

from millrace.answers.records import answer_records
from millrace.data.fields import build_encoder
from millrace.data.values import LabelIndex
from millrace.models.qaoa import Qaoa
from millrace.released import Released
from millrace.tasks import MaxcutTask

NUM_MEASURED = 100
"""Cuts drawn of each graph: as many as a quantum computer would be asked for at the least."""


def answer(released: Released, asked: Namespace) -> int:
    """Print a cut of every graph of a file or of standard input; the exit status."""

    def told(record: Mapping[str, Any]) -> dict[str, Any]:
        return cut(released, record, asked.seed)

    return answer_records(released.source, asked.input, told)


def cut(released: Released, record: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The largest of NUM_MEASURED cuts of one graph, and what is expected of a single one.

    Raises:
        UnusableRecordError: The record holds no graph, or one of more vertices than were trained.
    """
    assert isinstance(released.task, MaxcutTask), f"the task is {released.task.kind}"
    encoder = build_encoder(released.task)
    columns = encoder.samples([encoder.extract(record)], LabelIndex())
    inputs_BP, network = torch.tensor(columns["inputs"]), released.network
    with torch.inference_mode():
        found = {"edges": int(inputs_BP.sum()), "expected_cut": round(network(inputs_BP).item(), 4)}
        if not isinstance(network, Qaoa):
            return found  # the user's own: all that it promises
        share_BZ, cut_BZ = network.measured(inputs_BP)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(share_BZ[0], NUM_MEASURED, replacement=True, generator=generator)
        best = int(drawn[cut_BZ[0, drawn].argmax()])
    last = max(max(edge) for edge in record[released.task.edges])
    sides = [best >> vertex & 1 for vertex in range(last + 1)]
    return {"cut": round(cut_BZ[0, best].item()), "sides": sides, **found}
