import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from millrace.data.made.regular_graphs import records
from millrace.graphs import largest_cuts, num_pairs, to_pairs
from millrace.models.facts import DataFacts
from millrace.models.qaoa import Qaoa

SHARED = Path(__file__).parents[2] / "shared" / "data"
ANGLES = SHARED / "qaoa" / "fixed_angles_3_regular.json"
# Fixed angles for 3-regular graphs and the share of edges that they cut on trees without end
# (Wurtz and Lykov 2021, arXiv 2107.00677).
FIXED: dict[int, tuple[list[float], list[float], float]] = {
    1: ([0.6155336], [0.3926720], 0.6924500),
    2: ([0.4877097, 0.8979877], [0.5550603, 0.2925078], 0.7559063),
}
K33 = [[u, v] for u in (0, 2, 4) for v in (1, 3, 5)]
PETERSEN = [[i, (i + 1) % 5] for i in range(5)] + [[i, i + 5] for i in range(5)]
PETERSEN += [[5 + i, 5 + (i + 2) % 5] for i in range(5)]
HEAWOOD = [[i, (i + 1) % 14] for i in range(14)] + [[i, (i + 5) % 14] for i in range(0, 14, 2)]


def qaoa(vertices: int, gamma: list[float], beta: list[float]) -> Qaoa:
    network = Qaoa(DataFacts(0, (num_pairs(vertices),)), depth=len(gamma)).double()
    with torch.no_grad():
        network.gamma.copy_(torch.tensor(gamma))
        network.beta.copy_(torch.tensor(beta))
    return network


def expected_cut(network: Qaoa, edges: list[list[int]], vertices: int) -> float:
    with torch.inference_mode():
        return float(network(torch.from_numpy(to_pairs(edges, vertices))[None]))


def by_matrices(edges: list[list[int]], n: int, gamma: list[float], beta: list[float]) -> float:
    """The expected cut by the textbook: all 2**n amplitudes, a Kronecker product for the mixer."""
    cuts = np.array([sum((z >> u ^ z >> v) & 1 for u, v in edges) for z in range(2**n)])
    state = np.full(2**n, 2 ** (-n / 2), complex)
    for g, b in zip(gamma, beta, strict=True):
        one = np.array([[np.cos(b), -1j * np.sin(b)], [-1j * np.sin(b), np.cos(b)]])
        mixer = np.eye(1)
        for _ in range(n):
            mixer = np.kron(mixer, one)
        state = mixer @ (np.exp(-1j * g * cuts) * state)
    return float((np.abs(state) ** 2 * cuts).sum())


@pytest.mark.parametrize("vertices", [2, 3, 6, 7, 8])
def test_the_expected_cut_is_that_of_the_whole_state_and_its_matrices(vertices: int) -> None:
    rng = np.random.default_rng(vertices)
    edges = [[u, v] for v in range(vertices) for u in range(v) if rng.random() < 0.6 or v == 1]
    gamma, beta = rng.uniform(-3, 3, (2, 3)).tolist()

    found = expected_cut(qaoa(vertices, gamma, beta), edges, vertices)

    assert found == pytest.approx(by_matrices(edges, vertices, gamma, beta), abs=1e-6)


@pytest.mark.parametrize(
    ("edges", "vertices", "depth"),
    [(K33, 6, 1), (PETERSEN, 10, 1), (HEAWOOD, 14, 1), (HEAWOOD, 14, 2)],
)
def test_fixed_angles_cut_what_they_cut_of_a_tree_where_no_cycle_is_seen(
    edges: list[list[int]], vertices: int, depth: int
) -> None:
    """An edge sees what is at most `depth` steps away: no cycle where the girth is above 2p + 1."""
    gamma, beta, share = FIXED[depth]

    found = expected_cut(qaoa(vertices, gamma, beta), edges, vertices) / len(edges)

    assert found == pytest.approx(share, abs=1e-6)


def test_fixed_angles_cut_another_share_where_a_cycle_is_seen() -> None:
    gamma, beta, share = FIXED[2]

    assert abs(expected_cut(qaoa(10, gamma, beta), PETERSEN, 10) / 15 - share) > 1e-3


@pytest.mark.skipif(not ANGLES.exists(), reason="needs the table of fixed angles")
def test_the_published_table_is_reached_to_its_last_digits_where_it_applies() -> None:
    table: dict[str, Any] = json.loads(ANGLES.read_text())["3"]

    for depth in ("1", "2"):
        told = table[depth]
        found = expected_cut(qaoa(14, told["gamma"], told["beta"]), HEAWOOD, 14) / 21
        assert found == pytest.approx(told["AR"], abs=1e-6)


def test_deeper_circuits_with_fixed_angles_cut_more_of_random_graphs() -> None:
    if not ANGLES.exists():
        pytest.skip("needs the table of fixed angles")
    table: dict[str, Any] = json.loads(ANGLES.read_text())["3"]
    graphs = [to_pairs(graph["edges"], 12) for graph in records(vertices=12, records=8)]
    pairs = np.stack(graphs)

    with torch.inference_mode():
        ratios = [
            (qaoa(12, table[p]["gamma"], table[p]["beta"])(torch.from_numpy(pairs)).numpy()
             / largest_cuts(pairs)).mean()
            for p in ("1", "2", "4", "8")
        ]  # fmt: skip

    assert ratios == sorted(ratios)
    assert 0.7 < ratios[0] < ratios[-1] < 1


def test_angles_of_zero_cut_half_of_the_edges_and_vertices_without_edges_change_nothing() -> None:
    gamma, beta = [0.4, 0.8], [0.5, 0.3]

    assert expected_cut(qaoa(10, [0.0], [0.0]), PETERSEN, 10) == pytest.approx(7.5)
    alone = expected_cut(qaoa(10, gamma, beta), PETERSEN, 10)
    assert expected_cut(qaoa(13, gamma, beta), PETERSEN, 13) == pytest.approx(alone)


def test_each_graph_of_a_batch_is_measured_as_if_it_were_alone() -> None:
    pairs = np.stack([to_pairs(edges, 14) for edges in (K33, PETERSEN, HEAWOOD)])
    network = qaoa(14, *FIXED[2][:2])

    shares, cuts = network.measured(torch.from_numpy(pairs))

    torch.testing.assert_close(shares.sum(1), torch.ones(3, dtype=torch.float64))
    assert cuts.max(1).values.tolist() == largest_cuts(pairs).tolist()
    for number, edges in enumerate((K33, PETERSEN, HEAWOOD)):
        alone = expected_cut(network, edges, 14)
        assert float((shares[number] * cuts[number]).sum().detach()) == pytest.approx(alone)


def test_the_gradient_of_the_angles_is_that_of_differences() -> None:
    pairs = torch.from_numpy(np.stack([to_pairs(edges, 10) for edges in (K33, PETERSEN)]))
    network = qaoa(10, [0.3, 0.7], [0.5, 0.2])

    def cut(gamma: torch.Tensor, beta: torch.Tensor) -> Any:
        return torch.func.functional_call(network, {"gamma": gamma, "beta": beta}, (pairs,))

    assert torch.autograd.gradcheck(cut, (network.gamma, network.beta))


def test_training_one_layer_reaches_what_the_fixed_angles_cut() -> None:
    pairs = np.stack([to_pairs(graph["edges"], 12) for graph in records(vertices=12, records=20)])
    inputs, num_edges = torch.from_numpy(pairs), 18
    network = Qaoa(DataFacts(0, (num_pairs(12),)), depth=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
    begun = float(network(inputs).mean().detach()) / num_edges

    for _ in range(60):
        optimizer.zero_grad()
        (-network(inputs).mean() / num_edges).backward()
        optimizer.step()

    with torch.inference_mode():
        trained = float(network(inputs).mean()) / num_edges
        fixed = float(qaoa(12, *FIXED[1][:2])(inputs).mean()) / num_edges
    assert begun < fixed - 1e-3
    assert trained >= fixed - 1e-3
