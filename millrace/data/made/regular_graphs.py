"""Random regular graphs: no two of them the same but for the names of their vertices."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

Edges = list[list[int]]
MOST_DEGREE, MOST_VERTICES = 20, 1000
WALKS = 12
"""Lengths of closed walks that are counted: 20**12 is still a whole number in float64."""
FUTILE = 200
"""Graphs in a row that are all known, after which there are taken to be no more."""


def records(
    *, degree: int = 3, vertices: int = 14, records: int = 200, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Graphs as {"vertices": n, "edges": [[u, v], ...]}, u < v, in ascending order.

    No two are isomorphic, or a graph of the test split might be one of the train split in disguise:
    each differs from all others in how many closed walks lead through its vertices.

    Args:
        degree: Edges at every vertex.
        vertices: Of each graph; vertices * degree must be even.
        records: Graphs to make.
        seed: Of them all.

    Raises:
        ValueError: There are no such graphs, or too few.
    """
    if not (1 <= degree <= MOST_DEGREE and degree < vertices <= MOST_VERTICES):
        raise ValueError(
            f"degree {degree} and vertices {vertices}: the degree is from 1 to {MOST_DEGREE} and "
            f"below the vertices, of which there are at most {MOST_VERTICES}"
        )
    if degree * vertices % 2:
        raise ValueError(f"degree {degree} times vertices {vertices} is odd: no graph is such")
    rng, known, num_futile = np.random.default_rng(seed), set[bytes](), 0
    while len(known) < records:
        edges = regular_graph(degree, vertices, rng)
        looks = closed_walks(edges, vertices)
        num_futile = num_futile + 1 if looks in known else 0
        if num_futile == FUTILE:
            raise ValueError(
                f"records {records}: only {len(known)} graphs of degree {degree} with {vertices} "
                "vertices were found that are not the same but for the names of their vertices"
            )
        if looks not in known:
            known.add(looks)
            yield {"vertices": vertices, "edges": edges}


def regular_graph(degree: int, vertices: int, rng: np.random.Generator) -> Edges:
    """A random simple graph in which every vertex has `degree` edges (Steger and Wormald 1999).

    Loose ends are paired at random; pairs that would be a loop or a second edge are taken apart and
    paired anew. Where no pair is left that could be joined, all begins again.
    """
    while True:
        ends = np.repeat(np.arange(vertices), degree)
        edges: set[tuple[int, int]] = set()
        while _can_be_joined(ends, edges):
            loose = []
            for u, v in np.sort(rng.permutation(ends).reshape(-1, 2)).tolist():
                if u == v or (u, v) in edges:
                    loose += [u, v]
                else:
                    edges.add((u, v))
            ends = np.array(loose, np.int64)
        if not len(ends):
            return [list(edge) for edge in sorted(edges)]


def _can_be_joined(ends: npt.NDArray[np.int64], edges: set[tuple[int, int]]) -> bool:
    return any(pair not in edges for pair in combinations(np.unique(ends).tolist(), 2))


def closed_walks(edges: Edges, vertices: int) -> bytes:
    """For each vertex the closed walks through it by their length, whatever the vertices' names.

    Graphs that differ here are not isomorphic; few of those that agree are not.
    """
    joined = np.zeros((vertices, vertices))
    for u, v in edges:
        joined[u, v] = joined[v, u] = 1
    power, counts = joined, []
    for _ in range(WALKS - 1):
        power = power @ joined
        counts.append(np.diag(power))
    rows = np.stack(counts, axis=1)
    return rows[np.lexsort(rows.T)].tobytes()
