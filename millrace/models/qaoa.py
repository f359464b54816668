"""The quantum approximate optimization algorithm for MaxCut, simulated exactly and differentiably.

    all cuts alike --> gamma: a phase by the number of edges that each cut crosses
                   --> beta: cuts that differ in few vertices are mixed; and again for each layer
                   --> expected number of edges that a measured cut crosses

Farhi, Goldstone and Gutmann 2014 (arXiv 1411.4028). A cut and its mirror image, all vertices on the
other side, have the same amplitude all the way, so one of each two is kept: the last vertex stays
on side 0, which halves time and memory.

Shape suffixes: B graphs, P pairs of vertices, N vertices, Z = 2**(N - 1) cuts, S = 2**K cuts of a
group of K vertices, R = Z / S.
"""

import torch
from torch import Tensor, nn

from millrace.graphs import num_vertices, pair_ends
from millrace.models.facts import DataFacts

GROUP = 5
"""Vertices that are mixed by one matrix of 32 x 32: few passes over the amplitudes, little work."""


class Qaoa(nn.Module):
    """`depth` layers of two angles each, the same for all graphs.

    Amplitudes are complex64, or complex128 once the module is turned into `double()`; each graph
    takes 2**(N - 1) of them, and some copies for every layer while training.
    """

    sides_NZ: Tensor

    def __init__(self, facts: DataFacts, *, depth: int) -> None:
        super().__init__()
        self._vertices = num_vertices(facts.shape[0])
        # A schedule as of slow annealing, at half its pace: the first angle grows, the other falls.
        done = (torch.arange(depth) + 1) / (depth + 1)
        self.gamma = nn.Parameter(0.5 * done)
        self.beta = nn.Parameter(0.5 * (1 - done))
        cut_Z = torch.arange(2 ** (self._vertices - 1))
        sides_NZ = 1 - 2 * (cut_Z >> torch.arange(self._vertices)[:, None] & 1)
        self.register_buffer("sides_NZ", sides_NZ.to(self.gamma.dtype), persistent=False)

    def forward(self, pairs_BP: Tensor) -> Tensor:
        """Expected number of cut edges (B,), from 0 to the largest cut.

        Args:
            pairs_BP: 1 where the two vertices are joined, pairs as in `millrace.graphs`.
        """
        share_BZ, cut_BZ = self.measured(pairs_BP)
        return (share_BZ * cut_BZ).sum(1)

    def measured(self, pairs_BP: Tensor) -> tuple[Tensor, Tensor]:
        """The probability of each cut and the edges it crosses, both (B, Z)."""
        cut_BZ = self._cuts(pairs_BP)
        amplitude_BZ = torch.full_like(cut_BZ, cut_BZ.shape[1] ** -0.5)
        state_BZ = torch.complex(amplitude_BZ, torch.zeros_like(amplitude_BZ))
        for gamma, beta in zip(self.gamma, self.beta, strict=True):
            state_BZ = state_BZ * torch.polar(torch.ones_like(cut_BZ), -gamma * cut_BZ)
            state_BZ = _mixed(state_BZ, beta, self._vertices)
        return state_BZ.real.square() + state_BZ.imag.square(), cut_BZ

    def _cuts(self, pairs_BP: Tensor) -> Tensor:
        """The edges that each cut crosses (B, Z)."""
        weights_BP = pairs_BP.to(self.gamma.dtype)
        joined_BNN = weights_BP.new_zeros(len(weights_BP), self._vertices, self._vertices)
        u_P, v_P = (
            torch.from_numpy(ends).to(pairs_BP.device) for ends in pair_ends(self._vertices)
        )
        joined_BNN[:, u_P, v_P] = joined_BNN[:, v_P, u_P] = weights_BP
        same_BZ = ((joined_BNN @ self.sides_NZ) * self.sides_NZ).sum(1)  # twice, less the others
        return weights_BP.sum(1, keepdim=True) / 2 - same_BZ / 4


def _mixed(state_BZ: Tensor, beta: Tensor, vertices: int) -> Tensor:
    """Every vertex turned by exp(-i beta X): to its other side with the amplitude -i sin(beta)."""
    shape, left = state_BZ.shape, vertices - 1
    while left:
        size = min(GROUP, left)
        turn_SS = _turn(beta, size)
        # The lowest vertices are mixed and become the highest; after all groups all are in place.
        state_BRS = state_BZ.reshape(shape[0], -1, 2**size)
        state_BZ = (state_BRS @ turn_SS).transpose(1, 2).reshape(shape)
        left -= size
    # The last vertex on its other side: the mirror image, all others on theirs.
    return torch.cos(beta) * state_BZ - 1j * torch.sin(beta) * state_BZ.flip(1)


def _turn(beta: Tensor, size: int) -> Tensor:
    """exp(-i beta X) of a group of vertices: entry (a, b) by how many sides a and b differ in."""
    numbers_S = torch.arange(2**size, device=beta.device)
    differing_SS = numbers_S[:, None] ^ numbers_S
    num_SS = sum((differing_SS >> vertex & 1) for vertex in range(size))
    distance = torch.arange(size + 1, device=beta.device)
    powers = torch.cos(beta) ** (size - distance) * torch.sin(beta) ** distance
    sign = torch.tensor([1, -1j, -1, 1j], device=beta.device)[distance % 4]
    return (powers * sign)[num_SS]
