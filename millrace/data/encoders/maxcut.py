"""MaxCut: graphs as pairs of vertices, each with the largest cut there is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from millrace.data.columns import Columns, Field
from millrace.data.values import (
    Encoder,
    LabelIndex,
    Record,
    UnusableRecordError,
    Value,
    record_ids,
    required,
)
from millrace.graphs import largest_cuts, num_pairs, to_pairs
from millrace.tasks import MaxcutTask


def build(task: MaxcutTask) -> Encoder:
    """The encoder of graphs."""
    return _Graphs(task)


class _Graphs:
    """Lists of edges, filled up with vertices without edges; the largest cut by trying them all."""

    def __init__(self, task: MaxcutTask) -> None:
        self._task = task
        self.needs: tuple[str, ...] = (task.edges,)
        self.label = ""
        self.facts: Mapping[str, Any] = {}
        self.fields = {
            "inputs": Field("uint8", (num_pairs(task.vertices),)),
            "optimum": Field("int32"),
            "record": Field("uint64"),
        }

    def extract(self, record: Record) -> Value:
        name = self._task.edges
        edges = required(record, name)
        if not isinstance(edges, list) or not all(isinstance(edge, list) for edge in edges):
            raise UnusableRecordError(f"field `{name}` is no list of edges, each [u, v]")
        if not edges:
            raise UnusableRecordError(f"field `{name}` is empty: a graph without edges has no cut")
        try:
            pairs = to_pairs(edges, self._task.vertices)
        except ValueError as error:
            raise UnusableRecordError(
                f"field `{name}`: {error}, n = {self._task.vertices} (task.vertices)"
            ) from error
        return Value(pairs.tobytes())

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        inputs = np.frombuffer(b"".join(value.inputs for value in values), np.uint8)
        pairs = inputs.reshape(len(values), num_pairs(self._task.vertices))
        optimum = largest_cuts(pairs).astype(np.int32)
        return {"inputs": pairs, "optimum": optimum, "record": record_ids(values)}
