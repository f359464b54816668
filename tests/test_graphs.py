from itertools import combinations, product

import numpy as np
import pytest

from millrace.data.made.regular_graphs import records
from millrace.graphs import (
    largest_cuts,
    local_cuts,
    num_pairs,
    num_vertices,
    pair_ends,
    to_pairs,
)

PETERSEN = [[i, (i + 1) % 5] for i in range(5)] + [[i, i + 5] for i in range(5)]
PETERSEN += [[5 + i, 5 + (i + 2) % 5] for i in range(5)]


def counted(edges: list[list[int]], vertices: int) -> int:
    """The largest cut by trying every one, in plain Python."""
    return max(sum(s[u] != s[v] for u, v in edges) for s in product((0, 1), repeat=vertices))


def test_the_pairs_of_a_graph_stand_in_ascending_order() -> None:
    u, v = pair_ends(4)

    assert list(zip(u.tolist(), v.tolist(), strict=True)) == list(combinations(range(4), 2))
    assert to_pairs([[3, 1], [0, 2]], 4).tolist() == [0, 1, 0, 0, 1, 0]
    assert [num_vertices(num_pairs(n)) for n in range(2, 30)] == list(range(2, 30))


@pytest.mark.parametrize(
    ("edge", "reason"),
    [
        ([1, 1], r"\[1, 1\] does not join two"),
        ([0, 4], r"\[0, 4\] does not join two"),
        ([-1, 0], r"\[-1, 0\] does not join two"),
        ([2, 1], r"\[1, 2\] is there twice"),
        ([1, 2, 3], "is no edge"),
        ([1, 2.0], "is no edge"),
    ],
)
def test_an_edge_that_is_none_is_refused(edge: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_pairs([[1, 2], edge], 4)


def test_the_largest_cut_is_that_of_trying_every_one() -> None:
    graphs = [graph["edges"] for graph in records(degree=4, vertices=9, records=6, seed=2)]
    graphs.append([])

    found = largest_cuts(np.stack([to_pairs(edges, 9) for edges in graphs]))

    assert found.tolist() == [counted(edges, 9) for edges in graphs]


def test_known_graphs_have_their_known_largest_cuts() -> None:
    bipartite = [[u, v] for u in range(0, 10, 2) for v in range(1, 10, 2)]
    complete = [list(pair) for pair in combinations(range(10), 2)]
    graphs = np.stack([to_pairs(edges, 10) for edges in (PETERSEN, bipartite, complete)])

    assert largest_cuts(graphs).tolist() == [12, 25, 25]


def test_a_graph_of_eighteen_vertices_is_counted_slice_by_slice() -> None:
    cycle = [[i, (i + 1) % 17] for i in range(17)]

    assert largest_cuts(to_pairs(cycle, 18)[None]).tolist() == [16]  # an odd cycle misses one


def test_a_local_cut_cannot_be_enlarged_by_one_vertex_and_crosses_half_of_the_edges() -> None:
    graphs = np.stack([to_pairs(g["edges"], 14) for g in records(records=40)])

    found, best = local_cuts(graphs), largest_cuts(graphs)

    # At such a cut every vertex has more neighbours across than beside it: 2 of 3.
    assert (found >= 14).all()
    assert (found <= best).all()
    assert (found < best).any()
