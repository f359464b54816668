"""Byte-level language model for small budgets: hashed n-grams, and copying from its own context.

    bytes before a position --> rows of one table (n-grams, recent bytes, candidates), summed
                            --> residual MLP --> logits
    copy candidates         --> each votes for its byte by a learned weight --> added to them

A transformer must learn to look back and copy; here the looking back is built in, so the little
compute there is goes into learning what to make of it, and cost grows as T log T with the block.
n-gram tables after Pagliardini et al. 2017 (hashed n-gram embeddings), votes after See et al. 2017
(pointer-generator).

Shape suffixes: B blocks, T bytes of a block, P = PAD + T, N n-gram orders, C copy candidates,
F table rows per position, D width, V = 256 byte values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace.models.facts import DataFacts

V = 256
RECENT = 8
"""Bytes before a position that are also looked up by their distance."""
NGRAM_ORDERS = (2, 3, 4, 5, 6, 8)
COPY_ORDERS = (32, 20, 12, 8, 6, 5, 4, 3)
"""Context lengths whose latest earlier occurrence in the block is looked for."""
OLDER = 2
"""Occurrences before the latest that are also candidates, for the contexts of up to 6 bytes."""
NUM_LASTING = sum(order <= 6 for order in COPY_ORDERS)
PAD = max(COPY_ORDERS)
NUM_CANDIDATES = len(COPY_ORDERS) + OLDER * NUM_LASTING
# Hashes are sums of (byte + 1) * BASE**position modulo 2**64, so that any span's hash is a
# difference of two prefix sums times a power of BASE's inverse.
BASE = 0x2545F4914F6CDD1D
MIXER = -0x40A7B892E31B1A47  # odd; spreads a hash over its high bits


class NgramCopy(nn.Module):
    """Logits of each byte of a block from the bytes before it in the block.

    Args:
        facts: Of the data; only bytes will do.
        width: Channels.
        table_bits: Each n-gram order hashes into 2**table_bits rows.
    """

    rate_scales = {"table": 2.0}  # noqa: RUF012  a row is met rarely and must move when it is
    first_row_F: Tensor

    def __init__(self, facts: DataFacts, *, width: int, table_bits: int) -> None:
        super().__init__()
        self._table_bits = table_bits
        sizes = [2**table_bits] * len(NGRAM_ORDERS) + [V] * RECENT + [V + 1] * NUM_CANDIDATES
        ends_F = torch.tensor(sizes).cumsum(0)
        self.register_buffer("first_row_F", ends_F - torch.tensor(sizes), persistent=False)
        self.table = nn.EmbeddingBag(int(ends_F[-1]), width, mode="sum")
        nn.init.normal_(self.table.weight, std=0.05)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.logits = nn.Linear(width, V)
        self.votes = nn.Linear(width, NUM_CANDIDATES)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.votes.weight)
        nn.init.constant_(self.votes.bias, 0.3)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, 256): those at position t depend on the bytes before t alone."""
        row_BTF, candidate_BTC = self._look_back(tokens_BT)
        h_BTD = self.table(row_BTF.flatten(0, 1)).unflatten(0, tokens_BT.shape)
        h_BTD = h_BTD + self.down(F.relu(self.up(self.norm_in(h_BTD))))
        h_BTD = self.norm_out(h_BTD)
        vote_BTC = self.votes(h_BTD) * (candidate_BTC < V)
        logits_BTV: Tensor = self.logits(h_BTD)
        return logits_BTV.scatter_add(2, candidate_BTC.clamp(max=V - 1), vote_BTC)

    @torch.no_grad()
    def _look_back(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Table rows (B, T, F) and copy candidates (B, T, C; V where there is none)."""
        x_BP = F.pad(tokens_BT.long(), (PAD, 0))
        hash_of = _SpanHashes(x_BP)
        mask = 2**self._table_bits - 1
        bucket_NBT = (
            torch.stack([hash_of.last(order) for order in NGRAM_ORDERS]) * MIXER >> 32
        ) & mask
        candidate_CBT = _copy_candidates(
            tokens_BT.long(), torch.stack([hash_of.last(order) for order in COPY_ORDERS])
        )
        end = x_BP.shape[1]
        recent = [x_BP[:, PAD - back : end - back] for back in range(1, RECENT + 1)]
        row_FBT = torch.cat([bucket_NBT, torch.stack(recent), candidate_CBT])
        return row_FBT.permute(1, 2, 0) + self.first_row_F, candidate_CBT.permute(1, 2, 0)


class _SpanHashes:
    """Hashes of the bytes before each position of padded blocks (B, P)."""

    def __init__(self, x_BP: Tensor) -> None:
        self._end = x_BP.shape[1]
        ones_P = torch.ones(self._end, dtype=torch.int64, device=x_BP.device)
        power_P = (ones_P * _as_int64(BASE)).cumprod(0)
        self._inverse_P = (ones_P * _as_int64(pow(BASE, -1, 2**64))).cumprod(0)
        self._sum_BP = F.pad(((x_BP + 1) * power_P).cumsum(1), (1, 0))

    def last(self, order: int) -> Tensor:
        """Hash of the `order` bytes before each position, (B, T)."""
        stop, start = slice(PAD, self._end), slice(PAD - order, self._end - order)
        return (self._sum_BP[:, stop] - self._sum_BP[:, start]) * self._inverse_P[start]


def _as_int64(value: int) -> int:
    """Two's complement of an unsigned 64-bit number."""
    return value - 2**64 if value >= 2**63 else value


def _copy_candidates(tokens_BT: Tensor, hash_CBT: Tensor) -> Tensor:
    """The byte that followed earlier occurrences of each context: latest first, then older ones."""
    latest_CBT = _previous_equal(hash_CBT)
    found = [latest_CBT]
    back_CBT = older_CBT = latest_CBT[-NUM_LASTING:]
    for _ in range(OLDER):
        further_CBT = back_CBT.gather(-1, older_CBT.clamp(min=0))
        older_CBT = torch.where(older_CBT >= 0, further_CBT, -1)
        found.append(older_CBT)
    at_CBT = torch.cat(found)
    byte_CBT = tokens_BT.expand(len(at_CBT), *tokens_BT.shape).gather(-1, at_CBT.clamp(min=0))
    return torch.where(at_CBT >= 0, byte_CBT, V)


def _previous_equal(hash_CBT: Tensor) -> Tensor:
    """For each position the latest earlier one with an equal hash in its block, else -1."""
    sorted_CBT, position_CBT = hash_CBT.sort(dim=-1, stable=True)
    is_same = sorted_CBT[..., 1:] == sorted_CBT[..., :-1]
    before_CBT = F.pad(torch.where(is_same, position_CBT[..., :-1], -1), (1, 0), value=-1)
    return torch.empty_like(before_CBT).scatter_(-1, position_CBT, before_CBT)
