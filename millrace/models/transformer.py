"""Transformer blocks that the language model, the encoder and the vision transformer share.

    x_BTD --> norm --> attention --> added --> norm --> MLP --> added

Pre-norm as in Xiong et al. 2020; rotary positions after Su et al. 2021; squared ReLU after So et
al. 2021. Attention is torch's fused one, with the mask left out wherever none is needed.

Shape suffixes: B batch, T positions, D width, H heads, E channels of a head, S half of E.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 10_000.0
HEAD_CHANNELS = 32
"""Of a head, where the number of heads is left open."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (T, S) of the angle by which each pair of channels turns at each position."""


class Block(nn.Module):
    """Attention and an MLP of four times the width, each added to what came in.

    Both end in weights of zero, so that a stack of fresh blocks is the identity.

    Args:
        width: Channels; a multiple of `heads`.
        heads: Of the attention.
        dropout: Share of the channels dropped from what is added, while training.
        is_causal: Whether a position sees only itself and those before it.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, is_causal: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, is_causal=is_causal)
        self.norm_attention, self.norm_mlp = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.down.weight)

    def forward(
        self, x_BTD: Tensor, rotation: Rotation | None = None, is_real_BT: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) to the same shape.

        Args:
            x_BTD: What the positions hold.
            rotation: From `rotary`; without it positions are told apart by what they hold alone.
            is_real_BT: Which positions may be looked at; padding is False. None: all of them.
        """
        added_BTD = self.attention(self.norm_attention(x_BTD), rotation, is_real_BT)
        x_BTD = x_BTD + self.dropout(added_BTD)
        added_BTD = self.down(F.relu(self.up(self.norm_mlp(x_BTD))).square())
        changed_BTD: Tensor = x_BTD + self.dropout(added_BTD)
        return changed_BTD


class Attention(nn.Module):
    """Every position asks, every position it may see answers, in several heads."""

    def __init__(self, width: int, heads: int, *, is_causal: bool) -> None:
        super().__init__()
        assert width % heads == 0, f"width {width} is a multiple of heads {heads}"
        self._heads, self._is_causal = heads, is_causal
        self.ask_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x_BTD: Tensor, rotation: Rotation | None = None, is_real_BT: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) to the same shape; arguments as of `Block`."""
        split_BT3HE = self.ask_key_value(x_BTD).unflatten(-1, (3, self._heads, -1))
        ask_BHTE, key_BHTE, value_BHTE = split_BT3HE.permute(2, 0, 3, 1, 4)
        if rotation is not None:
            ask_BHTE, key_BHTE = _turned(ask_BHTE, rotation), _turned(key_BHTE, rotation)
        mask = None if is_real_BT is None else self._mask(is_real_BT)
        found_BHTE = F.scaled_dot_product_attention(
            ask_BHTE,
            key_BHTE,
            value_BHTE,
            attn_mask=mask,
            is_causal=self._is_causal and mask is None,
        )
        out_BTD: Tensor = self.out(found_BHTE.transpose(1, 2).flatten(2))
        return out_BTD

    def _mask(self, is_real_BT: Tensor) -> Tensor:
        """Who may look (third axis) at whom (fourth); itself always, or a softmax were empty."""
        num = is_real_BT.shape[1]
        own = torch.eye(num, dtype=torch.bool, device=is_real_BT.device)
        mask = is_real_BT[:, None, None, :] | own
        return mask & own.new_ones(num, num).tril() if self._is_causal else mask


def rotary(num_positions: int, head_channels: int, device: torch.device) -> Rotation:
    """The rotation for the positions 0, 1, ... of heads with an even number of channels."""
    share_S = torch.arange(0, head_channels, 2, device=device) / head_channels
    turn_TS = torch.outer(torch.arange(num_positions, device=device), ROTARY_BASE**-share_S)
    return turn_TS.cos(), turn_TS.sin()


def _turned(x_BHTE: Tensor, rotation: Rotation) -> Tensor:
    cos_TS, sin_TS = (part.to(x_BHTE.dtype) for part in rotation)
    one_BHTS, other_BHTS = x_BHTE.chunk(2, dim=-1)
    return torch.cat(
        [one_BHTS * cos_TS - other_BHTS * sin_TS, one_BHTS * sin_TS + other_BHTS * cos_TS], dim=-1
    )
