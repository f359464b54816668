"""Fully connected classifier of flat numbers."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from millrace.models.build import DataFacts


class Mlp(nn.Module):
    """`depth` hidden layers of `width` units with GELU."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, facts: "DataFacts", *, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(facts.mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(facts.deviation, dtype=torch.float32))
        sizes = [math.prod(facts.shape)] + [width] * depth
        hidden = [
            layer
            for inputs, outputs in pairwise(sizes)
            for layer in (nn.Linear(inputs, outputs), nn.GELU(), nn.Dropout(dropout))
        ]
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, facts.num_classes))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Class logits (batch, classes) of inputs (batch, ...), any scale."""
        logits_BK: Tensor = self.layers((x_BF - self.mean) / self.deviation)
        return logits_BK
