"""A peer: a small pre-norm GPT over bytes or token ids, as most would write it."""

import torch.nn.functional as F
from torch import Tensor, nn

from millrace.models.facts import DataFacts


class Block(nn.Module):
    """Causal self-attention and an MLP, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(batch, time, width) to the same."""
        batch, time, width = x_BTD.shape
        qkv = self.qkv(self.norm_attention(x_BTD)).view(batch, time, 3, self.heads, -1)
        q_BHTE, k_BHTE, v_BHTE = qkv.permute(2, 0, 3, 1, 4)
        y_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True)
        x_BTD = x_BTD + self.mix(y_BHTE.transpose(1, 2).reshape(batch, time, width))
        added_BTD: Tensor = self.down(F.gelu(self.up(self.norm_mlp(x_BTD))))
        return x_BTD + added_BTD


class GPT(nn.Module):
    """Logits of each byte or token id from those before it, `window` of them at a time."""

    def __init__(
        self, facts: DataFacts, *, width: int, depth: int, heads: int, window: int
    ) -> None:
        super().__init__()
        assert facts.shape[0] % window == 0, "the window divides the block"
        self.window, self.start = window, facts.num_classes
        self.tokens = nn.Embedding(self.start + 1, width)
        self.position = nn.Embedding(window, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, self.start)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V): those at position t depend on what is before t in its window."""
        tokens_NW = tokens_BT.view(-1, self.window)
        before_NW = F.pad(tokens_NW.long()[:, :-1], (1, 0), value=self.start)
        h_NWD = self.tokens(before_NW) + self.position.weight
        for block in self.blocks:
            h_NWD = block(h_NWD)
        logits_NWV: Tensor = self.logits(self.norm(h_NWD))
        return logits_NWV.view(*tokens_BT.shape, self.start)
