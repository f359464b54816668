"""Language model in the manner of GPT, over bytes or token ids.

    ids before a position --> embedding (and rows of hashed n-grams) --> causal blocks --> logits

Shape suffixes: B blocks of the batch, T positions, D width, V vocabulary, N n-gram orders.
"""

import torch
from torch import Tensor, nn

from millrace.models.facts import DataFacts
from millrace.models.transformer import HEAD_CHANNELS, Block, Rotation, rotary

NGRAM_ORDERS = (2, 3, 4, 5, 6)
MULTIPLIER = 0x2545F4914F6CDD1D  # odd; spreads a hash over the high bits
EMBEDDING_DEVIATION = 0.02


class Gpt(nn.Module):
    """Logits of each id of a block from the ids before it in the block.

    Args:
        facts: Of the data: how many ids there are, and how many to a block.
        width: Channels.
        depth: Blocks.
        heads: Of the attention; 0 gives each 32 channels, or all where the width is no multiple.
        dropout: Share of the channels dropped while training.
        tied: Whether the logits use the embedding's weights.
        ngram_bits: Each order of n-grams hashes into 2**ngram_bits rows; 0: no n-grams.
    """

    rate_scales = {"ngrams": 2.0}  # noqa: RUF012  a row is met rarely and must move when it is

    def __init__(
        self,
        facts: DataFacts,
        *,
        width: int,
        depth: int,
        heads: int,
        dropout: float,
        tied: bool,
        ngram_bits: int,
    ) -> None:
        super().__init__()
        heads = heads or default_heads(width)
        self._begin, self._ngram_bits = facts.num_classes, ngram_bits
        self._head_channels = width // heads
        self.embedding = nn.Embedding(facts.num_classes + 1, width)
        if ngram_bits:
            self.ngrams = nn.EmbeddingBag(len(NGRAM_ORDERS) << ngram_bits, width, mode="sum")
            nn.init.normal_(self.ngrams.weight, std=EMBEDDING_DEVIATION)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, dropout, is_causal=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_DEVIATION)
        if not tied:
            self.logits = nn.Linear(width, facts.num_classes, bias=False)
            nn.init.zeros_(self.logits.weight)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V): those at position t depend on the ids before t alone."""
        before_BT = tokens_BT.long().roll(1, dims=1)
        before_BT[:, 0] = self._begin
        x_BTD = self.embedding(before_BT)
        if self._ngram_bits:
            row_BTN = _ngram_rows(before_BT, self._ngram_bits)
            x_BTD = x_BTD + self.ngrams(row_BTN.flatten(0, 1)).unflatten(0, before_BT.shape)
        x_BTD = self.dropout(x_BTD)
        rotation: Rotation = rotary(x_BTD.shape[1], self._head_channels, x_BTD.device)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotation)
        x_BTD = self.norm(x_BTD)
        if hasattr(self, "logits"):
            logits_BTV: Tensor = self.logits(x_BTD)
        else:
            logits_BTV = x_BTD @ self.embedding.weight[: self._begin].T
        return logits_BTV


def default_heads(width: int) -> int:
    """Heads of HEAD_CHANNELS channels each; one where the width is no multiple of that."""
    return width // HEAD_CHANNELS if width % HEAD_CHANNELS == 0 else 1


@torch.no_grad()
def _ngram_rows(before_BT: Tensor, ngram_bits: int) -> Tensor:
    """Row (B, T, N) of the n-gram of each order that ends at each position.

    Near the beginning it is shorter: what lies before a block counts as 0.
    """
    hash_BT = torch.zeros_like(before_BT)
    shifted_BT = before_BT + 1
    found = []
    for order in range(1, NGRAM_ORDERS[-1] + 1):
        hash_BT = (hash_BT + shifted_BT) * MULTIPLIER
        hash_BT = hash_BT ^ (hash_BT >> 29)
        shifted_BT = shifted_BT.roll(1, dims=1)
        shifted_BT[:, 0] = 0
        if order in NGRAM_ORDERS:
            first_row = NGRAM_ORDERS.index(order) << ngram_bits
            found.append((hash_BT >> 20 & (2**ngram_bits - 1)) + first_row)
    return torch.stack(found, dim=-1)
